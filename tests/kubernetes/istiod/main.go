// Command istiod-for-tests is istiod, for tests that want it as a peer, and clients that were written for it.
//
//	discovery …   istiod itself
//	csr …         asks a CA for a certificate, as Istio's agent or as ztunnel does
//	ztunnel …     prints the policies and workloads that istiod sends to a ztunnel
//	sidecar …     prints the configuration that istiod sends to the Envoy of a pod
//	version       prints of which Istio this is
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"

	"istio.io/istio/pilot/cmd/pilot-discovery/app"
)

// What the fixtures are said to be recorded from.
var modules = map[string]string{"istio.io/istio": "istio", "istio.io/api": "api"}

func main() {
	commands := map[string]func([]string) (any, error){
		"csr": csr, "ztunnel": ztunnel, "sidecar": sidecar, "version": version,
	}
	if len(os.Args) > 1 {
		if command, ours := commands[os.Args[1]]; ours {
			os.Exit(run(command, os.Args[2:]))
		}
	}
	if err := app.NewRootCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run prints the result of one of our commands as JSON.
func run(command func([]string) (any, error), args []string) int {
	result, err := command(args)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func version([]string) (any, error) {
	info, present := debug.ReadBuildInfo()
	if !present {
		return nil, fmt.Errorf("this binary does not know what it is made of")
	}
	versions := map[string]string{}
	for _, module := range info.Deps {
		if name, wanted := modules[module.Path]; wanted {
			versions[name] = module.Version
		}
	}
	return versions, nil
}
