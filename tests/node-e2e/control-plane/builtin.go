package main

import (
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// runBuiltin runs the component this process was started as and ends the process with it.
// It returns if the name is none of theirs.
//
// Each is entered through its ordinary command, so that the built-in component and an
// installed binary given in the environment take the same arguments. For etcd that is
// etcdmain, the thin command around its embed package.
func runBuiltin(name string) {
	var command *cobra.Command
	switch name {
	case etcd:
		etcdmain.Main(os.Args)
		os.Exit(0)
	case kubeAPIServer:
		command = apiserver.NewAPIServerCommand()
	case kubeControllerManager:
		command = controllermanager.NewControllerManagerCommand()
	case kubeScheduler:
		command = scheduler.NewSchedulerCommand()
	default:
		return
	}
	os.Exit(cli.Run(command))
}
