package main

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Config is the effective configuration: defaults applied, values parsed.
type Config struct {
	DataDir string
	LogDir  string

	BindAddress      netip.Addr
	AdvertiseAddress netip.Addr
	ExtraSANs        []string
	Port             int

	// The controller manager's and the scheduler's health ports, on 127.0.0.1.
	ControllerManagerPort int
	SchedulerPort         int

	ServiceCIDR netip.Prefix
	// ClusterCIDR, if valid, makes the controller manager hand out pod CIDRs to nodes.
	ClusterCIDR netip.Prefix

	// Nodes get a kubeconfig each.
	Nodes []string

	// ExtraArgs are appended to a component's command line, by component name.
	ExtraArgs map[string][]string
}

func parseConfig(args []string) (*Config, error) {
	config := &Config{ExtraArgs: map[string][]string{}}
	flags := flag.NewFlagSet("control-plane", flag.ExitOnError)

	flags.StringVar(&config.DataDir, "data-dir", "", "directory for etcd's data, the PKI and the kubeconfigs; kept over restarts (required)")
	flags.StringVar(&config.LogDir, "log-dir", "", "directory for one log file per component (default DATA-DIR/log)")
	flags.IntVar(&config.Port, "port", 6443, "port of the API server")
	flags.IntVar(&config.ControllerManagerPort, "controller-manager-port", 10257, "health port of the controller manager, on 127.0.0.1")
	flags.IntVar(&config.SchedulerPort, "scheduler-port", 10259, "health port of the scheduler, on 127.0.0.1")
	bind := flags.String("bind-address", "127.0.0.1", "address the API server listens on")
	advertise := flags.String("advertise-address", "", "address that clients and nodes are told (default the bind address, or this machine's first address if that is unspecified)")
	serviceCIDR := flags.String("service-cidr", "10.96.0.0/16", "range of service addresses")
	clusterCIDR := flags.String("cluster-cidr", "", "range of pod addresses to allot to nodes (default: allot none)")
	flags.Func("extra-san", "further name or address for the API server's certificate; repeatable", appendTo(&config.ExtraSANs))
	flags.Func("node", "name of a node to write a kubeconfig for; repeatable", appendTo(&config.Nodes))
	for _, component := range []string{kubeAPIServer, kubeControllerManager, kubeScheduler, etcd} {
		flags.Func(component+"-arg", "further argument for "+component+", as --FLAG=VALUE; repeatable", func(value string) error {
			config.ExtraArgs[component] = append(config.ExtraArgs[component], value)
			return nil
		})
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}

	if config.DataDir == "" {
		return nil, fmt.Errorf("--data-dir is required")
	}
	if config.LogDir == "" {
		config.LogDir = filepath.Join(config.DataDir, "log")
	}
	for _, dir := range []*string{&config.DataDir, &config.LogDir} {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return nil, err
		}
		*dir = absolute
	}
	if socket := config.etcdSocket("etcd-peer"); len(socket) > 107 {
		return nil, fmt.Errorf("--data-dir is too long for a unix socket in it: %s", socket)
	}

	var err error
	if config.BindAddress, err = netip.ParseAddr(*bind); err != nil {
		return nil, fmt.Errorf("--bind-address: %w", err)
	}
	if config.AdvertiseAddress, err = advertiseAddress(*advertise, config.BindAddress); err != nil {
		return nil, fmt.Errorf("--advertise-address: %w", err)
	}
	if config.ServiceCIDR, err = netip.ParsePrefix(*serviceCIDR); err != nil {
		return nil, fmt.Errorf("--service-cidr: %w", err)
	}
	if *clusterCIDR != "" {
		if config.ClusterCIDR, err = netip.ParsePrefix(*clusterCIDR); err != nil {
			return nil, fmt.Errorf("--cluster-cidr: %w", err)
		}
	}
	for _, node := range config.Nodes {
		// The name becomes part of a file name.
		if node == "" || strings.ContainsAny(node, "/ \n") {
			return nil, fmt.Errorf("--node: %q is not a node name", node)
		}
	}
	return config, nil
}

func appendTo(list *[]string) func(string) error {
	return func(value string) error {
		*list = append(*list, value)
		return nil
	}
}

func advertiseAddress(given string, bind netip.Addr) (netip.Addr, error) {
	if given != "" {
		return netip.ParseAddr(given)
	}
	if !bind.IsUnspecified() {
		return bind, nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, address := range addresses {
		prefix, err := netip.ParsePrefix(address.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() && prefix.Addr().Is4() == bind.Is4() {
			return prefix.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("needed, as no interface has an address and --bind-address is %s", bind)
}

func (c *Config) pkiDir() string    { return filepath.Join(c.DataDir, "pki") }
func (c *Config) readyFile() string { return filepath.Join(c.DataDir, "ready") }

func (c *Config) etcdSocket(name string) string { return filepath.Join(c.DataDir, name+".sock") }

// kubeconfig is the path of one client's kubeconfig.
func (c *Config) kubeconfig(client string) string {
	return filepath.Join(c.DataDir, client+".kubeconfig")
}

// pkiFile is the path of a file in the PKI directory, such as "ca.crt".
func (c *Config) pkiFile(name string) string { return filepath.Join(c.pkiDir(), name) }

// server is the API server's address as clients use it.
func (c *Config) server() string {
	return "https://" + net.JoinHostPort(c.AdvertiseAddress.String(), strconv.Itoa(c.Port))
}

// kubernetesServiceIP is the cluster IP of the service "kubernetes": the first of the range.
func (c *Config) kubernetesServiceIP() netip.Addr { return c.ServiceCIDR.Masked().Addr().Next() }
