//! The words a field may hold, as enums.

/// An enum of which every variant is a word of the configuration.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            pub const WORDS: &[&str] = &[$($word),*];

            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)* _ => None }
            }

            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use words;

words! {
    /// Lowest TLS version served.
    TlsVersion {
        /// The TLS library's own choice.
        Unset = "",
        Tls10 = "VersionTLS10",
        Tls11 = "VersionTLS11",
        Tls12 = "VersionTLS12",
        Tls13 = "VersionTLS13",
    }
}

words! {
    AuthorizationMode { AlwaysAllow = "AlwaysAllow", Webhook = "Webhook" }
}

words! {
    /// When the credentials for an image that is already here are checked again.
    PullCredentialsPolicy {
        /// The gate is off; nothing is checked.
        Unset = "",
        NeverVerify = "NeverVerify",
        NeverVerifyPreloadedImages = "NeverVerifyPreloadedImages",
        NeverVerifyAllowlistedImages = "NeverVerifyAllowlistedImages",
        AlwaysVerify = "AlwaysVerify",
    }
}

words! {
    CgroupDriver { Cgroupfs = "cgroupfs", Systemd = "systemd" }
}

words! {
    CpuManagerPolicy { None = "none", Static = "static" }
}

words! {
    MemoryManagerPolicy { None = "None", Static = "Static" }
}

words! {
    TopologyManagerPolicy {
        None = "none",
        BestEffort = "best-effort",
        Restricted = "restricted",
        SingleNumaNode = "single-numa-node",
    }
}

words! {
    TopologyManagerScope { Container = "container", Pod = "pod" }
}

words! {
    HairpinMode {
        PromiscuousBridge = "promiscuous-bridge",
        HairpinVeth = "hairpin-veth",
        None = "none",
    }
}

words! {
    SwapBehavior {
        /// The same as `NoSwap`.
        Unset = "",
        NoSwap = "NoSwap",
        LimitedSwap = "LimitedSwap",
    }
}

words! {
    ChangeDetection { Get = "Get", Cache = "Cache", Watch = "Watch" }
}

words! {
    MemoryReservationPolicy { None = "None", TieredReservation = "TieredReservation" }
}

words! {
    LogFormat { Text = "text", Json = "json" }
}

words! {
    /// What node allocatable is enforced on.
    Enforcement {
        None = "none",
        Pods = "pods",
        SystemReserved = "system-reserved",
        SystemReservedCompressible = "system-reserved-compressible",
        KubeReserved = "kube-reserved",
        KubeReservedCompressible = "kube-reserved-compressible",
    }
}
