//! The Debian package: what it brings, and that it leaves as it came.

use anyhow::{Result, ensure};

use crate::stack::Agent;
use crate::vm::site::Site;
use crate::vm::{Case, case};

pub const CASES: &[Case] = &[
    case!(the_package_comes_in_kubelets_place_and_goes_again),
    case!(what_an_operator_disabled_stays_so_over_a_removal),
    case!(nothing_is_started_or_enabled_against_an_operators_mask),
];

/// A file of configuration that both packages have, as an operator wrote it.
const OPERATORS: &str = "/etc/default/kubelet";
const EDITED: &str = "# mine\nKUBELET_EXTRA_ARGS=\n";

async fn expect_edited(site: &Site) -> Result<()> {
    let now = site.guest.run(&format!("cat {OPERATORS}")).await?;
    ensure!(now == EDITED, "{OPERATORS} is {now:?}");
    Ok(())
}

async fn the_package_comes_in_kubelets_place_and_goes_again(site: Site) -> Result<()> {
    site.bare().await?;
    site.install(Agent::Kubelet).await?;
    site.guest.write(OPERATORS, EDITED).await?;
    site.install(Agent::Ferrolet).await?;
    expect_edited(&site).await?;
    let version = site.guest.run("kubelet --version").await?;
    ensure!(version.starts_with("Kubernetes v1.36."), "{version}");
    ensure!(version.lines().count() == 1, "{version}");
    // Nothing of it is broken, and kubeadm's package has the kubelet that it depends on. The machine
    // leaves out all documentation.
    let verify =
        "dpkg --audit; dpkg --verify ferrolet | grep -v -e /usr/share/doc -e /etc/default || true; apt-get -qq check";
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

    site.install(Agent::Kubelet).await?;
    expect_enabled(&site, "enabled").await?;
    expect_edited(&site).await?;
    // What is left of it goes, and the file is the other package's now.
    site.guest.run("dpkg --purge --force-depends ferrolet").await?;
    let links = site.guest.run("find /etc/systemd /var/lib/systemd -name '*ferrolet*'").await?;
    ensure!(links.is_empty(), "{links}");
    expect_edited(&site).await?;
    site.guest.run("apt-get -qq check").await.map(drop)
}

async fn what_an_operator_disabled_stays_so_over_a_removal(site: Site) -> Result<()> {
    site.bare().await?;
    site.install(Agent::Ferrolet).await?;
    site.guest.run("systemctl disable --now kubelet 2>&1; dpkg --remove --force-depends ferrolet 2>&1").await?;
    let installed = site.install(Agent::Ferrolet).await?;
    let state = site.guest.run("for it in is-enabled is-active; do systemctl $it ferrolet || true; done").await?;
    ensure!(state == "disabled\ninactive\n", "{state}{installed}");
    site.guest.run("dpkg --purge --force-depends ferrolet 2>&1").await.map(drop)
}

async fn nothing_is_started_or_enabled_against_an_operators_mask(site: Site) -> Result<()> {
    site.bare().await?;
    // Nothing is left of either but the operator's mask; the unmasking is what upstream's package does
    // at its purge, and the one on the machine leaves out.
    let purge = "dpkg --purge --force-depends ferrolet kubelet 2>&1
        DPKG_MAINTSCRIPT_PACKAGE=kubelet deb-systemd-helper unmask kubelet.service 2>&1";
    site.guest.run(purge).await?;
    site.guest.run(&format!("! test -e {OPERATORS}")).await?;
    let since = site.guest.run("systemctl mask kubelet >/dev/null 2>&1; date +%s").await?;
    let installed = site.install(Agent::Ferrolet).await?;
    let enabled = site.guest.run("for it in kubelet ferrolet; do systemctl is-enabled $it || true; done 2>&1").await?;
    ensure!(enabled == "masked\ndisabled\n", "{enabled}{installed}");
    let links = site.guest.run("find /etc/systemd/system -lname '*ferrolet*'").await?;
    ensure!(links.is_empty(), "{links}");
    let runs = site.guest.run("ls -l /proc/[0-9]*/exe 2>/dev/null | grep -E '/(kubelet|ferrolet)$' || true").await?;
    ensure!(runs.is_empty(), "{runs}");
    // Not tried and failed either.
    let journal = format!("journalctl --no-pager --quiet --output=cat --unit=ferrolet --since=@{}", since.trim());
    let tried = site.guest.run(&journal).await?;
    ensure!(tried.is_empty(), "{tried}");

    site.guest.run("systemctl unmask kubelet 2>&1; dpkg --purge --force-depends ferrolet 2>&1").await.map(drop)
}

async fn expect_enabled(site: &Site, state: &str) -> Result<()> {
    let said = site.guest.run("systemctl is-enabled kubelet").await?;
    ensure!(said.trim() == state, "kubelet.service is {said}");
    Ok(())
}
