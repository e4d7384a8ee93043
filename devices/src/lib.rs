//! Everything a guest can touch through a bus.
