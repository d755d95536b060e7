"""Tests, and a demo, on real kernels' packets: network namespaces with the firewall in the middle."""
