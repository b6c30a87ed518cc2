package main

import (
	"encoding/json"
	"flag"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/model"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

// ztunnelView is what a ztunnel knows of a cluster.
type ztunnelView struct {
	Policies  []json.RawMessage `json:"policies"`
	Workloads []json.RawMessage `json:"workloads"`
}

func ztunnel(words []string) (any, error) {
	flags := flag.NewFlagSet("ztunnel", flag.ContinueOnError)
	address := flags.String("address", "", "istiod's port without TLS")
	nodeName := flags.String("node-name", "", "node of the ztunnel")
	namespace := flags.String("namespace", "istio-system", "namespace of the ztunnel")
	if err := flags.Parse(words); err != nil {
		return nil, err
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAME": "ztunnel", "NAMESPACE": *namespace, "SERVICE_ACCOUNT": "ztunnel",
		"NODE_NAME": *nodeName, "CLUSTER_ID": "Kubernetes", "INSTANCE_IPS": "10.1.0.250",
	})
	if err != nil {
		return nil, err
	}
	id := "ztunnel~10.1.0.250~ztunnel." + *namespace + "~" + *namespace + ".svc.cluster.local"
	return withStream(*address, &core.Node{Id: id, Metadata: metadata}, readZtunnelView)
}

func readZtunnelView(s *stream) (any, error) {
	resources, err := s.subscribe(model.AddressType)
	if err != nil {
		return nil, err
	}
	addresses, err := decode[*workloadapi.Address](resources)
	if err != nil {
		return nil, err
	}
	var workloads []*workloadapi.Workload
	for _, address := range addresses {
		if workload := address.GetWorkload(); workload != nil {
			workloads = append(workloads, workload)
		}
	}
	if resources, err = s.subscribe(model.WorkloadAuthorizationType); err != nil {
		return nil, err
	}
	policies, err := decode[*security.Authorization](resources)
	if err != nil {
		return nil, err
	}
	var view ztunnelView
	if view.Policies, err = asJSON(policies); err != nil {
		return nil, err
	}
	view.Workloads, err = asJSON(workloads)
	return view, err
}
