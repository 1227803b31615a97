package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// P-256 throughout: making the whole PKI takes milliseconds, where RSA would take seconds.
//
// Everything found in the directory is kept, so that a restart on the same data keeps every
// identity. The one exception is the serving certificate, which is issued anew when it does
// not cover an address asked for.

const validity = 10 * 365 * 24 * time.Hour

// PKI is what is needed later on from memory; the components read the files.
type PKI struct {
	ca *keyPair
}

// keyPair is a certificate and its key, as on disk in NAME.crt and NAME.key.
type keyPair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func loadOrCreatePKI(config *Config) (*PKI, error) {
	ca, err := loadOrIssue(config, "ca", authority("kubernetes"), nil)
	if err != nil {
		return nil, err
	}
	frontProxyCA, err := loadOrIssue(config, "front-proxy-ca", authority("front-proxy"), nil)
	if err != nil {
		return nil, err
	}
	// What the API server shows to aggregated API servers.
	if _, err := loadOrIssue(config, "front-proxy-client", client("front-proxy-client"), frontProxyCA); err != nil {
		return nil, err
	}
	// What the API server shows to kubelets, for logs, exec and the like. The group spares the
	// cluster a role binding that kubeadm would have to add.
	kubeletClient := client("kube-apiserver-kubelet-client", "system:masters")
	if _, err := loadOrIssue(config, "apiserver-kubelet-client", kubeletClient, ca); err != nil {
		return nil, err
	}
	if err := loadOrIssueServing(config, ca); err != nil {
		return nil, err
	}
	if err := loadOrCreateServiceAccountKey(config); err != nil {
		return nil, err
	}
	return &PKI{ca: ca}, nil
}

// clientKeyPair returns the identity kept under pki/NAME, issuing it the first time.
func (p *PKI) clientKeyPair(config *Config, name string, template *x509.Certificate) (*keyPair, error) {
	return loadOrIssue(config, name, template, p.ca)
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
}

func client(name string, groups ...string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// serving is the certificate of all three servers: the controller manager and the scheduler
// listen on loopback, which it covers, and would otherwise each make one of their own.
func serving(config *Config) *x509.Certificate {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
	}
	addresses := []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(),
		config.AdvertiseAddress, config.kubernetesServiceIP(),
	}
	if !config.BindAddress.IsUnspecified() {
		addresses = append(addresses, config.BindAddress)
	}
	for _, san := range config.ExtraSANs {
		if address, err := netip.ParseAddr(san); err == nil {
			addresses = append(addresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, san)
		}
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, address.AsSlice())
	}
	return template
}

func loadOrIssueServing(config *Config, ca *keyPair) error {
	template := serving(config)
	pair, err := loadOrIssue(config, "serving", template, ca)
	if err != nil || covers(pair.cert, template) {
		return err
	}
	_, err = issue(config, "serving", template, ca)
	return err
}

// covers tells whether cert is valid for every name and address of wanted.
func covers(cert, wanted *x509.Certificate) bool {
	for _, name := range wanted.DNSNames {
		if cert.VerifyHostname(name) != nil {
			return false
		}
	}
	for _, ip := range wanted.IPAddresses {
		if cert.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}

func loadOrCreateServiceAccountKey(config *Config) error {
	if _, err := readKey(config.pkiFile("service-account.key")); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	// The key last: it is what says that both are there.
	if err := writePEM(config.pkiFile("service-account.pub"), "PUBLIC KEY", public, 0o644); err != nil {
		return err
	}
	return writeKey(config.pkiFile("service-account.key"), key)
}

// loadOrIssue returns the pair kept under pki/NAME. If there is none, it issues one from the
// template, signed by the issuer, or by itself if that is nil.
func loadOrIssue(config *Config, name string, template *x509.Certificate, issuer *keyPair) (*keyPair, error) {
	pair, err := load(config, name)
	if errors.Is(err, os.ErrNotExist) {
		pair, err = issue(config, name, template, issuer)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	return pair, nil
}

func load(config *Config, name string) (*keyPair, error) {
	key, err := readKey(config.pkiFile(name + ".key"))
	if err != nil {
		return nil, err
	}
	der, err := readPEM(config.pkiFile(name + ".crt"))
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &keyPair{cert, key}, nil
}

func issue(config *Config, name string, template *x509.Certificate, issuer *keyPair) (*keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if issuer == nil {
		issuer = &keyPair{template, key}
	}
	// An hour back, for machines and VMs whose clocks differ a little.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := writeKey(config.pkiFile(name+".key"), key); err != nil {
		return nil, err
	}
	if err := writePEM(config.pkiFile(name+".crt"), "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return &keyPair{cert, key}, nil
}

func readKey(path string) (crypto.Signer, error) {
	der, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key.(crypto.Signer), nil // every private key type of the standard library is one
}

func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	return block.Bytes, nil
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeFile replaces a file in one step, so that a start that was killed leaves nothing half
// written for the next one to keep.
func writeFile(path string, content []byte, mode os.FileMode) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
