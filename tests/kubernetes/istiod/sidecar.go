package main

import (
	"encoding/json"
	"flag"
	"fmt"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	http "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/model"
	"istio.io/istio/pkg/util/sets"
)

// sidecarView is what the Envoy of a pod knows.
type sidecarView struct {
	Clusters  []json.RawMessage `json:"clusters"`
	Listeners []json.RawMessage `json:"listeners"`
	Routes    []json.RawMessage `json:"routes"`
}

func sidecar(words []string) (any, error) {
	flags := flag.NewFlagSet("sidecar", flag.ContinueOnError)
	address := flags.String("address", "", "istiod's port without TLS")
	namespace := flags.String("namespace", "", "of the pod")
	pod := flags.String("pod", "", "its name")
	ip := flags.String("ip", "", "its address")
	metadata := flags.String("metadata", "{}", "more of what the injector writes down, as JSON")
	if err := flags.Parse(words); err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(*metadata), &fields); err != nil {
		return nil, fmt.Errorf("--metadata: %w", err)
	}
	fields["NAME"], fields["NAMESPACE"], fields["INSTANCE_IPS"] = *pod, *namespace, *ip
	fields["CLUSTER_ID"], fields["MESH_ID"], fields["INTERCEPTION_MODE"] = "Kubernetes", "cluster.local", "REDIRECT"
	written, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", *ip, *pod, *namespace, *namespace)
	node := &core.Node{Id: id, Cluster: *pod + "." + *namespace, Metadata: written}
	return withStream(*address, node, readSidecarView)
}

func readSidecarView(s *stream) (any, error) {
	clusters, err := read[*cluster.Cluster](s, model.ClusterType)
	if err != nil {
		return nil, err
	}
	listeners, err := read[*listener.Listener](s, model.ListenerType)
	if err != nil {
		return nil, err
	}
	names, err := routeNames(listeners)
	if err != nil {
		return nil, err
	}
	routes, err := read[*route.RouteConfiguration](s, model.RouteType, names...)
	if err != nil {
		return nil, err
	}
	var view sidecarView
	if view.Clusters, err = asJSON(clusters); err != nil {
		return nil, err
	}
	if view.Listeners, err = asJSON(listeners); err != nil {
		return nil, err
	}
	view.Routes, err = asJSON(routes)
	return view, err
}

func read[M proto.Message](s *stream, kind string, names ...string) ([]M, error) {
	resources, err := s.subscribe(kind, names...)
	if err != nil {
		return nil, err
	}
	return decode[M](resources)
}

// routeNames are the routes that the listeners ask for.
func routeNames(listeners []*listener.Listener) ([]string, error) {
	names := sets.New[string]()
	for _, one := range listeners {
		for _, chain := range one.FilterChains {
			for _, filter := range chain.Filters {
				manager := &http.HttpConnectionManager{}
				if !filter.GetTypedConfig().MessageIs(manager) {
					continue
				}
				if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
					return nil, err
				}
				if name := manager.GetRds().GetRouteConfigName(); name != "" {
					names.Insert(name)
				}
			}
		}
	}
	if names.IsEmpty() {
		return nil, fmt.Errorf("no listener asks for routes")
	}
	return sets.SortedList(names), nil
}
