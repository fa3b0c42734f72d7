//! Counters with names and meanings.

/// Declares a struct of `u64` counters that can be added field by field, and listed with their
/// meanings.
#[macro_export]
macro_rules! counters {
    ($(#[$outer:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])+ $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: u64,)* }

        impl $name {
            /// Adds another core's counters to these.
            pub fn add(&mut self, other: &$name) {
                $(self.$field += other.$field;)*
            }

            /// Calls `visit` with the name, the meaning and the value of each, in order.
            pub fn each(&self, mut visit: impl FnMut(&'static str, &'static str, u64)) {
                $(visit(stringify!($field), concat!($($doc),+).trim_ascii(), self.$field);)*
            }
        }
    };
}
