//! bzImage kernels: decompression on the host, and the cache that makes it happen once.
