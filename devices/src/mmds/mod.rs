//! The microVM metadata service: a JSON document that the host writes and the guest reads over HTTP, at an address of a link that
//! exists between the two alone. Firecracker's, by what it does (its `docs/mmds`).
//!
//! | file      | what lives there                                                                   |
//! |-----------|--------------------------------------------------------------------------------------|
//! | `store`   | the document: replaced, patched (RFC 7396), read by JSON pointer (RFC 6901)             |
//! | `token`   | session tokens of version 2                                                           |
//! | `http`    | a request's bytes to an answer's                                                      |
//! | `frame`   | which of a guest's frames are for the service; ARP (RFC 826)                            |
//! | [`stack`] | TCP connections of one network interface                                               |
//!
//! [`Mmds`] is what API and devices share; a [`Stack`] belongs to a network device, which gives it the guest's frames and takes
//! its own. Nothing of it reaches the host's network.
//!
//! The guest is hostile: connections, their buffers and the frames that wait are bounded, and an answer is made only
//! when the one before it has left.

mod frame;
mod http;
pub mod stack;
mod store;
mod token;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use frame::START;
pub use stack::Stack;
pub use store::StoreError;

use crate::virtio::Counters;
use store::Store;
use token::Tokens;

/// Address of the service, where no other is configured.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Bytes that the document may have as JSON, where nothing else is configured: what Firecracker's API takes.
pub const SIZE_LIMIT: usize = 51_200;

/// What the guest has to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// Nothing: whoever can send a request can read.
    #[default]
    V1,
    /// A token, which is had by a `PUT` first.
    V2,
}

/// How the service behaves towards the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// What the guest has to show.
    pub version: Version,
    /// Plain text as of EC2's metadata service, whatever a request's `Accept` says.
    pub imds_compat: bool,
}

/// The service's contents and rules, as API and devices share them. A clone is the same service.
#[derive(Clone, Debug)]
pub struct Mmds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    counts: Counts,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    behaviour: Behaviour,
    tokens: Tokens,
}

impl Default for Mmds {
    fn default() -> Self {
        Self::new(SIZE_LIMIT)
    }
}

impl Mmds {
    /// With nothing in it, for documents of `limit` bytes of JSON at most.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                store: Store::new(limit),
                behaviour: Behaviour::default(),
                tokens: Tokens::new(Instant::now()),
            }),
            counts: Counts::default(),
        }))
    }

    /// From now on it behaves like this.
    pub fn configure(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
    }

    /// Replaces the document.
    ///
    /// # Errors
    /// [`StoreError`]; the document is as it was.
    pub fn put(&self, document: Value) -> Result<(), StoreError> {
        self.lock().store.put(document)
    }

    /// Changes the document as `patch` says (JSON Merge Patch, RFC 7396): all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError`]; the document is as it was.
    pub fn patch(&self, patch: &Value) -> Result<(), StoreError> {
        self.lock().store.patch(patch)
    }

    /// The document. `None` where there was none yet.
    pub fn document(&self) -> Option<Value> {
        self.lock().store.document().cloned()
    }

    /// Numbers of the guest's side, by Firecracker's names.
    pub fn counters(&self) -> Counters {
        self.0.counts.list()
    }

    fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// It is held for a bounded time: no system call but for random bytes, once.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Declares counters that several threads add to.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        struct Counts {
            $($(#[$doc])* $name: AtomicU64,)*
        }

        impl Counts {
            fn list(&self) -> Counters {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counts! {
    /// Frames that were for the service.
    rx_accepted,
    /// Those of them that are wrong, or too much at the moment.
    rx_accepted_err,
    /// Those of them that are neither ARP nor TCP.
    rx_accepted_unusual,
    /// Frames that are too short to be any; the network device drops them before.
    rx_bad_eth,
    /// Requests with a token that is none of the service's, or is over.
    rx_invalid_token,
    /// Requests without a token.
    rx_no_token,
    /// TCP segments that were taken.
    rx_count,
    /// Bytes of the frames to the guest.
    tx_bytes,
    /// Times that frames were made for the guest.
    tx_count,
    /// Frames that could not be.
    tx_errors,
    /// Frames to the guest.
    tx_frames,
    /// TCP connections that were established.
    connections_created,
    /// Those of them that are over.
    connections_destroyed,
}

/// Adds one.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
