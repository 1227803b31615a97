//! The Debian package: what it brings, and that it leaves as it came.

use anyhow::{Result, ensure};

use crate::stack::Agent;
use crate::vm::site::Site;
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[case!(the_package_comes_in_kubelets_place_and_goes_again)];

async fn the_package_comes_in_kubelets_place_and_goes_again(site: Site) -> Result<()> {
    site.bare().await?;
    site.install(Agent::Kubelet).await?;
    site.install(Agent::Ferrolet).await?;
    let version = site.guest.run("kubelet --version").await?;
    ensure!(version.starts_with("Kubernetes v1.36."), "{version}");
    ensure!(version.lines().count() == 1, "{version}");
    // Nothing of it is broken, and kubeadm's package has the kubelet that it depends on. The machine
    // leaves out all documentation.
    let verify = "dpkg --audit; dpkg --verify ferrolet | grep -v /usr/share/doc || true; apt-get -qq check";
    let audit = site.guest.run(verify).await?;
    ensure!(audit.is_empty(), "{audit}");
    expect_enabled(&site, "alias").await?;

    // By either name, as operators are used to.
    site.guest.run("systemctl disable kubelet 2>&1; ! systemctl is-enabled ferrolet").await?;
    site.guest.run("systemctl enable kubelet 2>&1; systemctl is-enabled ferrolet").await?;

    site.guest.run("dpkg --remove --force-depends ferrolet").await?;
    let left = site
        .guest
        .run("systemctl is-enabled kubelet ferrolet 2>&1 || true; command -v kubelet ferrolet || true")
        .await?;
    ensure!(!left.contains("/usr/bin"), "{left}");
    ensure!(!left.contains("masked") && !left.contains("enabled"), "{left}");
    site.guest
        .run("test -e /etc/default/kubelet; dpkg --purge --force-depends ferrolet; ! test -e /etc/default/kubelet")
        .await?;
    let links = site.guest.run("find /etc/systemd /var/lib/systemd -name '*ferrolet*'").await?;
    ensure!(links.is_empty(), "{links}");

    site.install(Agent::Kubelet).await?;
    expect_enabled(&site, "enabled").await?;
    site.guest.run("apt-get -qq check").await.map(drop)
}

async fn expect_enabled(site: &Site, state: &str) -> Result<()> {
    let said = site.guest.run("systemctl is-enabled kubelet").await?;
    ensure!(said.trim() == state, "kubelet.service is {said}");
    Ok(())
}
