package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// stopGrace is how long one component may take to stop before it is killed. Their state
	// is in etcd, which is the last to go, so a kill loses nothing.
	stopGrace     = 3 * time.Second
	probeInterval = 50 * time.Millisecond
	probeTimeout  = 2 * time.Second
)

// children are the running components, in starting order. Only the main goroutine uses it.
type children struct {
	logDir  string
	workDir string
	running []*child
}

type child struct {
	name    string
	logPath string
	process *os.Process
	// exited is closed once the process is reaped and `result` is set.
	exited chan struct{}
	result error
}

// start must be called from the main thread; see init in main.go.
func (c *children) start(component component) error {
	binary := component.binary
	if binary == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		binary = self
	}
	logPath := filepath.Join(c.logDir, component.name+".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()

	command := exec.Command(binary, component.args...)
	// The built-in components are told apart by it, and so are the processes in ps.
	command.Args[0] = component.name
	command.Dir = c.workDir
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{
		// Not even a SIGKILL of the parent leaves one behind.
		Pdeathsig: syscall.SIGKILL,
		// A Ctrl-C at the terminal reaches the parent only, which stops them in order.
		Setpgid: true,
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", component.name, err)
	}
	started := &child{name: component.name, logPath: logPath, process: command.Process, exited: make(chan struct{})}
	go func() {
		started.result = command.Wait()
		close(started.exited)
	}()
	c.running = append(c.running, started)
	return nil
}

// awaitReady waits until all the component's probes have answered. It fails at once if any
// child exits.
func (c *children) awaitReady(ctx context.Context, client *http.Client, component component) error {
	exits := c.unexpectedExit()
	for _, probe := range component.probes {
		for {
			problem := tryProbe(ctx, client, probe)
			if problem == nil {
				break
			}
			select {
			case exit := <-exits:
				return exit
			case <-ctx.Done():
				return fmt.Errorf("%s not ready in time: %w\n%s", component.name, problem,
					logTail(filepath.Join(c.logDir, component.name+".log")))
			case <-time.After(probeInterval):
			}
		}
	}
	return nil
}

// unexpectedExit returns a channel that tells of the first child to exit.
func (c *children) unexpectedExit() <-chan error {
	exits := make(chan error, len(c.running))
	for _, child := range c.running {
		go func() {
			<-child.exited
			exits <- fmt.Errorf("%s exited: %v\n%s", child.name, child.result, logTail(child.logPath))
		}()
	}
	return exits
}

// stop ends the children in reverse starting order and returns once all are reaped.
func (c *children) stop() error {
	var problems []error
	for i := len(c.running) - 1; i >= 0; i-- {
		problems = append(problems, c.running[i].stop())
	}
	c.running = nil
	return errors.Join(problems...)
}

func (c *child) stop() error {
	if err := c.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(stopGrace):
	}
	if err := c.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-c.exited
	return nil
}

func (c *child) signal(signal syscall.Signal) error {
	if err := c.process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.name, err)
	}
	return nil
}

// newProbeClient speaks as the admin, over a connection of its own for each request: a kept
// one would hold up the API server's shutdown.
func newProbeClient(config *Config) (*http.Client, error) {
	identity, err := tls.LoadX509KeyPair(config.pkiFile("admin.crt"), config.pkiFile("admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(config.pkiFile("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{
		Timeout: probeTimeout,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{identity}},
			DisableKeepAlives: true,
		},
	}, nil
}

func tryProbe(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// logTail is the end of a component's log, for the error message of a person who does not
// know yet where the logs are.
func logTail(path string) string {
	const lines = 10
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return fmt.Sprintf("--- %s\n%s", path, bytes.Join(all, []byte("\n")))
}
