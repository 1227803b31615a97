package main

import (
	"os"
	"testing"
)

// identities maps each file of the PKI directory to its content.
func identities(t *testing.T, args ...string) map[string]string {
	t.Helper()
	config, err := parseConfig(args)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := prepareDataDir(config)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	pki, err := loadOrCreatePKI(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKubeconfigs(config, pki); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(config.pkiDir())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, entry := range entries {
		content, err := os.ReadFile(config.pkiFile(entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[entry.Name()] = string(content)
	}
	return found
}

func changed(before, after map[string]string) map[string]bool {
	names := map[string]bool{}
	for name := range after {
		if before[name] != after[name] {
			names[name] = true
		}
	}
	return names
}

func TestRestartKeepsEveryIdentity(t *testing.T) {
	dir := t.TempDir()
	before := identities(t, "--data-dir", dir, "--node", "a")
	after := identities(t, "--data-dir", dir, "--node", "a", "--port", "7443")
	if names := changed(before, after); len(names) != 0 {
		t.Errorf("restart changed %v", names)
	}
}

func TestNewAddressRenewsOnlyTheServingCertificate(t *testing.T) {
	dir := t.TempDir()
	before := identities(t, "--data-dir", dir)
	after := identities(t, "--data-dir", dir, "--extra-san", "192.0.2.1", "--extra-san", "api.test")
	names := changed(before, after)
	if !names["serving.crt"] || !names["serving.key"] || len(names) != 2 {
		t.Errorf("a new address changed %v", names)
	}
}

func TestStartKilledBetweenKeyAndCertificateIsRepaired(t *testing.T) {
	dir := t.TempDir()
	identities(t, "--data-dir", dir, "--node", "a")
	if err := os.Remove(dir + "/pki/node-a.crt"); err != nil {
		t.Fatal(err)
	}
	if after := identities(t, "--data-dir", dir, "--node", "a"); after["node-a.crt"] == "" {
		t.Error("node-a.crt was not issued again")
	}
}

func TestRefusesADirectoryInUse(t *testing.T) {
	config, err := parseConfig([]string{"--data-dir", t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	lock, err := prepareDataDir(config)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if second, err := prepareDataDir(config); err == nil {
		second.Close()
		t.Error("took the lock twice")
	}
}
