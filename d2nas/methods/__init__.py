"""Search methods: how a supernet is sampled, updated and derived from."""
