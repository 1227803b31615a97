package main

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
)

// writeKubeconfigs writes one file per client. They are written at every start, since the
// address may have changed; the identities in them are kept. Everything is inlined, so that
// a file can be copied to where it is needed.
func writeKubeconfigs(config *Config, pki *PKI) error {
	clients := map[string]*x509.Certificate{
		"admin":               client("kubernetes-admin", "system:masters"),
		kubeControllerManager: client("system:kube-controller-manager"),
		kubeScheduler:         client("system:kube-scheduler"),
	}
	for _, node := range config.Nodes {
		clients["node-"+node] = client("system:node:"+node, "system:nodes")
	}
	for name, template := range clients {
		if _, err := pki.clientKeyPair(config, name, template); err != nil {
			return err
		}
		if err := writeKubeconfig(config, name); err != nil {
			return fmt.Errorf("kubeconfig %s: %w", name, err)
		}
	}
	return nil
}

func writeKubeconfig(config *Config, name string) error {
	var inlined [3]string
	for i, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		content, err := os.ReadFile(config.pkiFile(file))
		if err != nil {
			return err
		}
		if block, _ := pem.Decode(content); block == nil {
			return fmt.Errorf("%s holds no PEM block", file)
		}
		inlined[i] = base64.StdEncoding.EncodeToString(content)
	}
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: default
contexts:
- name: default
  context:
    cluster: default
    user: default
clusters:
- name: default
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: default
  user:
    client-certificate-data: %s
    client-key-data: %s
`, config.server(), inlined[0], inlined[1], inlined[2])
	return writeFile(config.kubeconfig(name), []byte(content), 0o600)
}
