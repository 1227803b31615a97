// Command control-plane runs a whole Kubernetes control plane for tests: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, the real ones, linked into this one binary.
//
// The parent makes the PKI and the kubeconfigs, starts each component as a child process,
// prints "ready" once a pod could be created and scheduled, and stops them in order on
// SIGTERM. The children are this same binary under another argv[0] (builtin.go): the
// components each own process-wide flags, feature gates and metric registries, so they
// cannot share a process.
//
//	main.go        flags, the life of the parent
//	config.go      what was asked for, and the paths that follow from it
//	pki.go         keys, certificates
//	kubeconfig.go  the files a client or a node is given
//	components.go  command line and readiness of each component
//	builtin.go     the components when they are this binary
//	supervise.go   child processes
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// readyDeadline is far above the few seconds a start takes, so that a machine busy with
// builds does not fail a test run.
const readyDeadline = 2 * time.Minute

// The kernel delivers a child's parent-death signal when the *thread* that forked it ends.
// The main thread ends only with the process, so every child is started from it.
func init() { runtime.LockOSThread() }

func main() {
	runBuiltin(filepath.Base(os.Args[0]))

	config, err := parseConfig(os.Args[1:])
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = run(ctx, config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "control-plane:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config *Config) (err error) {
	lock, err := prepareDataDir(config)
	if err != nil {
		return err
	}
	defer lock.Close()

	pki, err := loadOrCreatePKI(config)
	if err != nil {
		return err
	}
	if err := writeKubeconfigs(config, pki); err != nil {
		return err
	}

	children := &children{logDir: config.LogDir, workDir: config.DataDir}
	defer func() { err = errors.Join(err, children.stop()) }()
	defer os.Remove(config.readyFile())

	if err := startAll(ctx, config, children); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while still starting
		}
		return err
	}
	// With the process id, by which one can tell the file of a parent that was killed.
	if err := writeFile(config.readyFile(), fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return err
	}
	fmt.Println("ready")

	select {
	case <-ctx.Done():
		return nil
	case exit := <-children.unexpectedExit():
		return exit
	}
}

// startAll starts the components in the order of their dependencies and waits until the
// cluster is usable as a whole.
func startAll(ctx context.Context, config *Config, children *children) error {
	ctx, cancel := context.WithTimeout(ctx, readyDeadline)
	defer cancel()

	client, err := newProbeClient(config)
	if err != nil {
		return err
	}
	for _, stage := range stages(config) {
		for _, component := range stage {
			if err := children.start(component); err != nil {
				return err
			}
		}
		for _, component := range stage {
			if err := children.awaitReady(ctx, client, component); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepareDataDir makes the directories and takes the lock that keeps a second control plane
// out of them. Closing the returned file gives the lock back.
func prepareDataDir(config *Config) (*os.File, error) {
	for _, dir := range []string{config.DataDir, config.pkiDir(), config.LogDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(config.DataDir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%s is in use by another control plane", config.DataDir)
	}
	// A parent that was killed left its file behind.
	if err := os.Remove(config.readyFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		lock.Close()
		return nil, err
	}
	return lock, nil
}
