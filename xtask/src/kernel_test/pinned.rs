//! Which kernel exactly: Debian's packages by version and digest, so that what is measured on them is measured on the same
//! everywhere. Debian's archive forgets old versions; [`super::kernels`] then takes the newest of the series and says so.

use super::kernels::Wanted;

/// A kernel's release, as `uname -r` has it, and what holds it.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) release: &'static str,
    pub(super) packages: &'static [Package],
}

/// One of Debian's packages for x86-64.
#[derive(Debug)]
pub(super) struct Package {
    /// What its name is before the release.
    pub(super) part: &'static str,
    pub(super) version: &'static str,
    pub(super) sha256: &'static str,
}

impl Pin {
    /// Says in one word which one it is.
    pub(super) fn version(&self) -> &'static str {
        self.packages.first().map_or("", |package| package.version)
    }
}

/// `apt-cache show linux-image-RELEASE` has version and digest of a newer one.
pub(super) fn of(wanted: Wanted) -> &'static Pin {
    match wanted {
        Wanted::V6_1 => &Pin {
            release: "6.1.0-56-cloud-amd64",
            packages: &[Package {
                part: "linux-image-",
                version: "6.1.192-2",
                sha256: "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee",
            }],
        },
        Wanted::V6_12 => &Pin {
            release: "6.12.117+deb12-cloud-amd64",
            packages: &[Package {
                part: "linux-image-",
                version: "6.12.117-1~deb12u1",
                sha256: "5195b288dec79e2981d6b84457f38b7ce7310a2d702930ec7d07209c7f78ce37",
            }],
        },
        Wanted::V6_18 => &Pin {
            release: "6.18.15+deb13-cloud-amd64",
            packages: &[Package {
                part: "linux-image-",
                version: "6.18.15-1~bpo13+1",
                sha256: "5a507681ea8c978d02265a7fec2f02c9588fb48b54b7f71edc1059e86007f3ec",
            }],
        },
        Wanted::Rekey => &Pin {
            release: "7.3.4+deb13-cloud-amd64",
            packages: &[
                Package {
                    part: "linux-binary-",
                    version: "7.3.4-1~bpo13+1",
                    sha256: "c4fbc8e404958693b28825474c20742d70594d65ca58aea7be6a279c81eb6fa0",
                },
                Package {
                    part: "linux-modules-",
                    version: "7.3.4-1~bpo13+1",
                    sha256: "359f04c363b7d3c5f9ce999ccb7351e00cc8eec0a30d6bc1cda37734987fc43d",
                },
            ],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_is_pinned_to_one_of_its_series() {
        for wanted in Wanted::ALL {
            let pin = of(*wanted);
            assert!(wanted.is(pin.release), "{pin:?}");
            assert!(!pin.packages.is_empty());
            for package in pin.packages {
                assert_eq!(package.version, pin.version());
                let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
                assert!(package.sha256.len() == 64 && package.sha256.chars().all(is_digit));
            }
        }
    }
}
