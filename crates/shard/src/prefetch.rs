//! Prefetches cache lines before they are needed.
//!
//! A turn knows all its keys before it looks up the first one, so index buckets and items can be
//! loaded while other requests are parsed. A prefetch of any address is harmless: the instruction
//! never faults and changes no state visible to a program.
#![allow(unsafe_code)]

/// Starts loading the cache line that holds `target` into every cache level.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(target: &T) {
    let address = (target as *const T).cast::<u8>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint; it neither faults nor reads architecturally, for any address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: PRFM is a hint; it neither faults nor reads architecturally, for any address.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
