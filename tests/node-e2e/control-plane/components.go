package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

// The names of the components: as argv[0], in log file names and in the flags.
const (
	etcd                  = "etcd"
	kubeAPIServer         = "kube-apiserver"
	kubeControllerManager = "kube-controller-manager"
	kubeScheduler         = "kube-scheduler"
)

// component is one process of the control plane, as a value.
type component struct {
	name string
	// binary is an installed program to run; empty means the built-in one.
	binary string
	args   []string
	// probes are addresses that all answer 200 once the component does its work. None means
	// that it counts as ready at once.
	probes []string
}

// stages lists the components in starting order. Those of one stage start together, once all
// of the stage before are ready; they are stopped in reverse order.
func stages(config *Config) [][]component {
	return [][]component{
		// The API server waits for etcd by itself, and most of its start is spent before it
		// looks for it.
		{etcdComponent(config), apiServerComponent(config)},
		// These look up the authentication settings once, at start, so the API server must be there.
		{controllerManagerComponent(config), schedulerComponent(config)},
	}
}

func etcdComponent(config *Config) component {
	// Unix sockets: nothing to collide with, and nobody else on the machine can connect.
	listen := func(name string) string { return "unix://" + config.etcdSocket(name) }
	// What is advertised must be host:port even so. Nobody reads it: there are no peers, and
	// the API server is told the socket.
	const unused = "http://127.0.0.1:1"
	return newComponent(config, etcd, nil, []string{
		"--name=default",
		"--data-dir=" + config.DataDir + "/etcd",
		"--listen-client-urls=" + listen("etcd"),
		"--listen-peer-urls=" + listen("etcd-peer"),
		"--advertise-client-urls=" + unused,
		"--initial-advertise-peer-urls=" + unused,
		"--initial-cluster=default=" + unused,
		// Loses data only if the machine itself goes down, which no test survives anyway, and
		// keeps the disk of the machine from setting the pace of the API.
		"--unsafe-no-fsync",
		"--log-level=warn",
	})
}

func apiServerComponent(config *Config) component {
	server := config.server()
	probes := []string{
		server + "/readyz",
	}
	args := []string{
		"--bind-address=" + config.BindAddress.String(),
		"--advertise-address=" + config.AdvertiseAddress.String(),
		"--secure-port=" + strconv.Itoa(config.Port),
		"--tls-cert-file=" + config.pkiFile("serving.crt"),
		"--tls-private-key-file=" + config.pkiFile("serving.key"),

		"--etcd-servers=unix://" + config.etcdSocket("etcd"),
		"--service-cluster-ip-range=" + config.ServiceCIDR.String(),

		"--client-ca-file=" + config.pkiFile("ca.crt"),
		"--enable-bootstrap-token-auth",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",

		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + config.pkiFile("service-account.pub"),
		"--service-account-signing-key-file=" + config.pkiFile("service-account.key"),

		"--requestheader-client-ca-file=" + config.pkiFile("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + config.pkiFile("front-proxy-client.crt"),
		"--proxy-client-key-file=" + config.pkiFile("front-proxy-client.key"),

		// No --kubelet-certificate-authority: a node's serving certificate is self-signed
		// unless a test asks for another.
		"--kubelet-client-certificate=" + config.pkiFile("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + config.pkiFile("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
	}
	if config.AdvertiseAddress.IsLoopback() {
		// An Endpoints object may not hold a loopback address; the API server would log the
		// refusal every ten seconds and hold back its shutdown.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return newComponent(config, kubeAPIServer, probes, args)
}

func controllerManagerComponent(config *Config) component {
	kubeconfig := config.kubeconfig(kubeControllerManager)
	probes := []string{
		loopback(config.ControllerManagerPort) + "/healthz",
		// Made by two of its controllers; no pod is admitted without the first, and none
		// starts without the second.
		config.server() + "/api/v1/namespaces/default/serviceaccounts/default",
		config.server() + "/api/v1/namespaces/default/configmaps/kube-root-ca.crt",
	}
	args := append(backendArgs(config, kubeconfig, config.ControllerManagerPort),
		"--controllers=*,bootstrapsigner,tokencleaner",
		"--use-service-account-credentials",
		"--service-account-private-key-file="+config.pkiFile("service-account.key"),
		"--root-ca-file="+config.pkiFile("ca.crt"),
		"--cluster-signing-cert-file="+config.pkiFile("ca.crt"),
		"--cluster-signing-key-file="+config.pkiFile("ca.key"),
		"--service-cluster-ip-range="+config.ServiceCIDR.String(),
	)
	if config.ClusterCIDR.IsValid() {
		args = append(args, "--allocate-node-cidrs", "--cluster-cidr="+config.ClusterCIDR.String())
	}
	return newComponent(config, kubeControllerManager, probes, args)
}

func schedulerComponent(config *Config) component {
	kubeconfig := config.kubeconfig(kubeScheduler)
	probes := []string{loopback(config.SchedulerPort) + "/readyz"}
	return newComponent(config, kubeScheduler, probes, backendArgs(config, kubeconfig, config.SchedulerPort))
}

// backendArgs are common to the controller manager and the scheduler.
func backendArgs(config *Config, kubeconfig string, port int) []string {
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + config.pkiFile("serving.crt"),
		"--tls-private-key-file=" + config.pkiFile("serving.key"),
		// There is one of each, and after a kill it must not wait for its own old lease.
		"--leader-elect=false",
		// The defaults (20 and 50 requests a second) would be what "100 pods at once" measures.
		"--kube-api-qps=1000",
		"--kube-api-burst=2000",
	}
}

func newComponent(config *Config, name string, probes, args []string) component {
	return component{
		name:   name,
		binary: installedBinary(name),
		args:   append(args, config.ExtraArgs[name]...),
		probes: probes,
	}
}

// installedBinary looks in the environment for a program to run instead of the built-in
// component, under the names that users of envtest know.
func installedBinary(name string) string {
	variables := map[string][2]string{
		etcd:                  {"TEST_ASSET_ETCD", "ETCD"},
		kubeAPIServer:         {"TEST_ASSET_KUBE_APISERVER", "KUBE_APISERVER"},
		kubeControllerManager: {"TEST_ASSET_KUBE_CONTROLLER_MANAGER", "KUBE_CONTROLLER_MANAGER"},
		kubeScheduler:         {"TEST_ASSET_KUBE_SCHEDULER", "KUBE_SCHEDULER"},
	}
	for _, variable := range variables[name] {
		if path := os.Getenv(variable); path != "" {
			return path
		}
	}
	return ""
}

func loopback(port int) string {
	return fmt.Sprintf("https://%s", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}
