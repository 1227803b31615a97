//! Checks of the agent's health, as those who asked for them were answered: the page
//! `/metrics/slis`.

use super::text::Page;
use super::{Counter, Gauge, Instrument};

static LAST: Gauge<2> = Gauge::new("kubernetes_healthcheck", "How a check went last: 1 is well.", ["name", "type"]);
static ALL_OF_THEM: Counter<3> =
    Counter::new("kubernetes_healthchecks_total", "How checks went.", ["name", "type", "status"]);
/// The only kind of page that a node has for its health.
const TYPE: &str = "healthz";

pub fn checked(name: &str, is_well: bool) {
    LAST.set([name, TYPE], if is_well { 1.0 } else { 0.0 });
    ALL_OF_THEM.add([name, TYPE, if is_well { "success" } else { "error" }]);
}

pub fn write(page: &mut Page) {
    LAST.write(page);
    ALL_OF_THEM.write(page);
}

pub fn reset() {
    LAST.reset();
    ALL_OF_THEM.reset();
}
