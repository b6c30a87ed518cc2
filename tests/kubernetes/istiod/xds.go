package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	_ "istio.io/istio/pkg/config/xds" // Every extension of Envoy, so that its configuration can be printed.
)

// Longest time for all answers; istiod knows everything before it says that it is ready.
const patience = 60 * time.Second

// stream is a delta stream of aggregated discovery.
type stream struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node *core.Node
}

// withStream connects to the port without TLS, where istiod asks nobody who he is.
func withStream(address string, node *core.Node, use func(*stream) (any, error)) (any, error) {
	unlimited := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))
	connection, err := grpc.NewClient(address, unlimited, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	opened, err := discovery.NewAggregatedDiscoveryServiceClient(connection).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	return use(&stream{opened, node})
}

// subscribe gives the resources of a type, in the order of their names; without names all of them.
func (s *stream) subscribe(kind string, names ...string) ([]*discovery.Resource, error) {
	if len(names) == 0 {
		names = []string{"*"}
	}
	request := &discovery.DeltaDiscoveryRequest{Node: s.node, TypeUrl: kind, ResourceNamesSubscribe: names}
	if err := s.Send(request); err != nil {
		return nil, err
	}
	for {
		answer, err := s.Recv()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		ack := &discovery.DeltaDiscoveryRequest{Node: s.node, TypeUrl: answer.TypeUrl, ResponseNonce: answer.Nonce}
		if err := s.Send(ack); err != nil {
			return nil, err
		}
		if answer.TypeUrl == kind {
			resources := answer.Resources
			sort.Slice(resources, func(i, j int) bool { return resources[i].Name < resources[j].Name })
			return resources, nil
		}
	}
}

// decode reads what is in resources of one type.
func decode[M proto.Message](resources []*discovery.Resource) ([]M, error) {
	var decoded []M
	for _, resource := range resources {
		message, err := resource.Resource.UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resource.Name, err)
		}
		wanted, right := message.(M)
		if !right {
			return nil, fmt.Errorf("%s is a %T", resource.Name, message)
		}
		decoded = append(decoded, wanted)
	}
	return decoded, nil
}

// asJSON prints messages with the names that they have in Envoy's documentation.
func asJSON[M proto.Message](messages []M) ([]json.RawMessage, error) {
	printed := []json.RawMessage{}
	for _, message := range messages {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
		if err != nil {
			return nil, err
		}
		printed = append(printed, text)
	}
	return printed, nil
}
