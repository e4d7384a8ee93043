//! What this host's KVM can do, found by asking it and by running a probe guest.
