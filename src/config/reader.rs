//! Takes typed values out of the finished document and collects everything that is wrong.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use serde_json::Value;

use super::duration::GoDuration;
use super::kubelet::{NumaMemory, ShutdownBand, VModule, grace_period};
use super::path::FieldPath;
use super::quantity::{self, Quantity};
use super::taints;
use super::thresholds::{Purpose, Signal, Thresholds, parse_limit, parse_signal};
use super::tree::Tree;

/// Reads a tree whose values are of the kinds the table says; every method gives a stand-in
/// for what it cannot read, and the finding keeps that stand-in from ever being used.
pub struct Reader<'t> {
    tree: &'t Tree,
    pub wrong: Vec<(FieldPath, String)>,
    /// The fields asked for, so that a test can tell that none is forgotten.
    #[cfg(test)]
    pub asked: Vec<String>,
}

impl<'t> Reader<'t> {
    pub fn new(tree: &'t Tree) -> Self {
        Reader {
            tree,
            wrong: Vec::new(),
            #[cfg(test)]
            asked: Vec::new(),
        }
    }

    fn get(&mut self, path: &str) -> &'t Value {
        #[cfg(test)]
        self.asked.push(path.to_owned());
        self.tree.get(&FieldPath::of_field(path)).unwrap_or(&Value::Null)
    }

    fn wrong(&mut self, path: FieldPath, reason: impl Display) {
        self.wrong.push((path, reason.to_string()));
    }

    pub fn boolean(&mut self, path: &str) -> bool {
        self.get(path).as_bool().unwrap_or_default()
    }

    pub fn boolean_if_any(&mut self, path: &str) -> Option<bool> {
        self.get(path).as_bool()
    }

    pub fn integer<T: TryFrom<i64> + Default>(&mut self, path: &str) -> T {
        self.integer_if_any(path).unwrap_or_default()
    }

    /// Out of the target's range is out of the field's rule as well, which reports it.
    pub fn integer_if_any<T: TryFrom<i64>>(&mut self, path: &str) -> Option<T> {
        T::try_from(self.get(path).as_i64()?).ok()
    }

    pub fn integers(&mut self, path: &str) -> Vec<i32> {
        let items = self.get(path).as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter_map(|item| i32::try_from(item.as_i64()?).ok()).collect()
    }

    /// A port, where 0 means that there is none.
    pub fn port_or_none(&mut self, path: &str) -> Option<u16> {
        Some(self.integer(path)).filter(|port| *port != 0)
    }

    pub fn float(&mut self, path: &str) -> f64 {
        self.get(path).as_f64().unwrap_or_default()
    }

    pub fn text(&mut self, path: &str) -> String {
        self.text_if_any(path).unwrap_or_default()
    }

    pub fn text_if_any(&mut self, path: &str) -> Option<String> {
        self.get(path).as_str().map(str::to_owned)
    }

    pub fn file(&mut self, path: &str) -> Option<PathBuf> {
        self.get(path).as_str().filter(|file| !file.is_empty()).map(PathBuf::from)
    }

    pub fn word<T>(&mut self, path: &str, parse: fn(&str) -> Option<T>, stand_in: T) -> T {
        // The rule of the field reports a word that is none of these.
        self.get(path).as_str().and_then(parse).unwrap_or(stand_in)
    }

    pub fn ip(&mut self, path: &str) -> IpAddr {
        let address = self.get(path).as_str().and_then(|ip| ip.parse().ok());
        address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    pub fn signed_duration(&mut self, path: &str) -> GoDuration {
        let text = self.get(path).as_str().unwrap_or("0s");
        GoDuration::parse(text).unwrap_or_default()
    }

    pub fn duration(&mut self, path: &str) -> Duration {
        self.signed_duration(path).to_std().unwrap_or_default()
    }

    pub fn duration_if_any(&mut self, path: &str) -> Option<Duration> {
        let text = self.get(path).as_str()?;
        GoDuration::parse(text).ok()?.to_std()
    }

    pub fn quantity(&mut self, path: &str) -> Quantity {
        self.parsed(path, quantity::parse).unwrap_or(Quantity::ZERO)
    }

    pub fn parsed<T, E: Display>(&mut self, path: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        match parse(self.get(path).as_str()?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(FieldPath::of_field(path), error);
                None
            }
        }
    }

    pub fn texts(&mut self, path: &str) -> Vec<String> {
        strings(self.get(path)).map(str::to_owned).collect()
    }

    pub fn parsed_list<T, E: Display>(&mut self, path: &str, parse: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
        let mut parsed = Vec::new();
        for (index, text) in strings(self.get(path)).enumerate() {
            match parse(text) {
                Ok(value) => parsed.push(value),
                Err(error) => {
                    let reason = format!("{error}, found {text:?}");
                    self.wrong(FieldPath::of_field(path).child(index), reason);
                }
            }
        }
        parsed
    }

    pub fn text_map(&mut self, path: &str) -> BTreeMap<String, String> {
        let map = entries(self.get(path));
        map.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    }

    /// A map of which key and value together are parsed.
    pub fn parsed_map<T, E: Display>(
        &mut self,
        path: &str,
        parse: impl Fn(&str, &str) -> Result<T, E>,
    ) -> BTreeMap<String, T> {
        let mut parsed = BTreeMap::new();
        for (key, value) in self.text_map(path) {
            match parse(&key, &value) {
                Ok(value) => drop(parsed.insert(key, value)),
                Err(error) => self.wrong(FieldPath::of_field(path).child(&key), error),
            }
        }
        parsed
    }

    pub fn headers(&mut self, path: &str) -> BTreeMap<String, Vec<String>> {
        let map = entries(self.get(path));
        map.map(|(name, values)| (name.clone(), strings(values).map(str::to_owned).collect())).collect()
    }

    pub fn gates(&mut self, path: &str) -> BTreeMap<String, bool> {
        let map = entries(self.get(path));
        map.filter_map(|(name, on)| Some((name.clone(), on.as_bool()?))).collect()
    }

    pub fn thresholds(&mut self, path: &str, purpose: Purpose) -> Thresholds {
        let parse = |signal: &str, limit: &str| {
            let signal = parse_signal(signal)?;
            parse_limit(limit, purpose).map(|limit| (signal, limit))
        };
        let parsed = self.parsed_map(path, parse).into_values();
        parsed.filter_map(|(signal, limit)| Some((signal, limit?))).collect()
    }

    pub fn grace_periods(&mut self, path: &str) -> BTreeMap<Signal, Duration> {
        let parse = |signal: &str, text: &str| {
            let signal = parse_signal(signal).map_err(|e| e.to_string())?;
            grace_period(text).map(|duration| (signal, duration))
        };
        self.parsed_map(path, parse).into_values().collect()
    }

    pub fn vmodule(&mut self, path: &str) -> Vec<VModule> {
        let items = self.get(path).as_array().map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .map(|item| VModule {
                file_pattern: item["filePattern"].as_str().unwrap_or_default().to_owned(),
                verbosity: number(&item["verbosity"]),
            })
            .collect()
    }

    pub fn shutdown_bands(&mut self, path: &str) -> Vec<ShutdownBand> {
        let items = self.get(path).as_array().map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .map(|item| ShutdownBand {
                priority: number(&item["priority"]),
                grace_period_seconds: number(&item["shutdownGracePeriodSeconds"]),
            })
            .collect()
    }

    pub fn numa_memory(&mut self, path: &str) -> Vec<NumaMemory> {
        let items = self.get(path).as_array().map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .map(|item| NumaMemory {
                numa_node: number(&item["numaNode"]),
                limits: entries(&item["limits"])
                    .filter_map(|(k, v)| Some((k.clone(), quantity::parse(v.as_str()?).ok()?)))
                    .collect(),
            })
            .collect()
    }

    pub fn taints(&mut self, path: &str) -> Vec<Taint> {
        let items = self.get(path).as_array().map(Vec::as_slice).unwrap_or_default();
        let mut taints = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match taints::of_value(item) {
                Ok(taint) => taints.push(taint),
                Err(error) => self.wrong(FieldPath::of_field(path).child(index), error),
            }
        }
        taints
    }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn number<T: TryFrom<i64> + Default>(value: &Value) -> T {
    value.as_i64().and_then(|n| T::try_from(n).ok()).unwrap_or_default()
}
