//! Services, as far as environment variables are made of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

/// A service with an address of its own. The others (headless, ExternalName) have no
/// environment variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: i32,
    /// `TCP` unless the service says otherwise.
    pub protocol: String,
}

/// All services of one moment, by namespace and name.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Services(Arc<ByName>);

type ByName = BTreeMap<String, BTreeMap<String, Arc<Service>>>;

impl Services {
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        self.0.get(namespace).into_iter().flat_map(|services| services.values().map(Arc::as_ref))
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.0.get(namespace)?.get(name).map(Arc::as_ref)
    }

    pub fn set(&mut self, service: &v1::Service) {
        self.remove(service);
        if let Some(service) = Service::with_address(service) {
            let namespace = Arc::make_mut(&mut self.0).entry(service.namespace.clone()).or_default();
            namespace.insert(service.name.clone(), Arc::new(service));
        }
    }

    pub fn remove(&mut self, service: &v1::Service) {
        let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
            return;
        };
        if let Some(services) = Arc::make_mut(&mut self.0).get_mut(namespace) {
            services.remove(name);
        }
    }
}

impl FromIterator<v1::Service> for Services {
    fn from_iter<I: IntoIterator<Item = v1::Service>>(services: I) -> Self {
        let mut all = Services::default();
        services.into_iter().for_each(|service| all.set(&service));
        all
    }
}

impl Service {
    fn with_address(service: &v1::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
        let ports = spec.ports.iter().flatten().map(|port| ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        });
        Some(Service {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
            cluster_ip: cluster_ip.to_owned(),
            ports: ports.collect(),
        })
    }
}
