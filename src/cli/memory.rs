//! How the allocator keeps the agent's memory: in one place.
//!
//! Left to itself, glibc gives threads up to eight arenas for each CPU, so that they need not
//! wait for each other. Ours hardly ever would; but each arena keeps what a burst of pods left
//! in it, scattered, and blocking calls spread over a dozen. With 80 pods on the node after 80
//! others had gone, 17.6 MB of anonymous memory were 14.2 MB with one arena, of which the
//! agent used 2.2 MB when all pods had gone.
#![allow(unsafe_code)] // There is no safe way to the allocator's settings.

/// To be called before there are other threads: those there are keep the arena they have.
pub fn keep_in_one_place() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers and changes a setting of the allocator, under its own lock.
    // Where it fails, more memory is kept than need be.
    let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}
