// All-reduce over nodes: peer memory or the host's proxies carry what crosses between them.
#include "hierarchical.cuh"

WEFT_HIERARCHICAL(hierarchical_direct, DirectPeerLink)
WEFT_HIERARCHICAL(hierarchical_doubling, DoublingPeerLink)
WEFT_HIERARCHICAL(hierarchical_host, HostLink)
