package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher/plugin"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	"istio.io/istio/security/pkg/pki/util"
)

// csrArgs say whom to ask, as whom, for what.
type csrArgs struct {
	address, serverName, rootFile, tokenFile string
	identity                                 string
	like                                     string
	key                                      string
	lifetime                                 time.Duration
}

// certificate is what came of it, after it was verified as a peer verifies it.
type certificate struct {
	Identity string    `json:"identity"`
	Chain    int       `json:"chain"`
	Roots    int       `json:"roots"`
	Key      string    `json:"key"`
	NotAfter time.Time `json:"not_after"`
	Lifetime float64   `json:"lifetime_seconds"`
}

func csr(words []string) (any, error) {
	var args csrArgs
	flags := flag.NewFlagSet("csr", flag.ContinueOnError)
	flags.StringVar(&args.address, "address", "", "host and port of the CA")
	flags.StringVar(&args.serverName, "server-name", "", "name in the CA's certificate")
	flags.StringVar(&args.rootFile, "root-file", "", "roots of the CA's certificate")
	flags.StringVar(&args.tokenFile, "token-file", "", "token of the caller")
	flags.StringVar(&args.identity, "identity", "", "SPIFFE ID that is wanted")
	flags.StringVar(&args.like, "like", "agent", "who asks: Istio's agent beside a sidecar, or ztunnel")
	flags.StringVar(&args.key, "key", "rsa", "rsa or ecdsa")
	flags.DurationVar(&args.lifetime, "lifetime", 24*time.Hour, "how long it is to be valid")
	if err := flags.Parse(words); err != nil {
		return nil, err
	}
	request, key, err := newRequest(args)
	if err != nil {
		return nil, err
	}
	ask := askAsAgent
	if args.like == "ztunnel" {
		ask = askAsZtunnel
	}
	chain, err := ask(args, request)
	if err != nil {
		return nil, err
	}
	return verify(args.identity, chain, key)
}

// newRequest is made by the code that makes it in Istio's agent.
func newRequest(args csrArgs) ([]byte, []byte, error) {
	options := util.CertOptions{Host: args.identity, RSAKeySize: 2048}
	if args.key == "ecdsa" {
		options.ECSigAlg, options.ECCCurve = util.EcdsaSigAlg, util.P256Curve
	}
	return util.GenCSR(options)
}

// askAsAgent uses the client of Istio's agent.
func askAsAgent(args csrArgs, request []byte) ([]string, error) {
	client, err := citadel.NewCitadelClient(&security.Options{
		CAEndpoint:    args.address,
		CAEndpointSAN: args.serverName,
		ClusterID:     "Kubernetes",
		CredFetcher:   plugin.CreateTokenPlugin(args.tokenFile),
	}, &citadel.TLSOptions{RootCert: args.rootFile})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.CSRSign(request, int64(args.lifetime.Seconds()))
}

// askAsZtunnel names the identity beside the request, which the CA has to prefer to what is in it.
func askAsZtunnel(args csrArgs, request []byte) ([]string, error) {
	roots, err := os.ReadFile(args.rootFile)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(args.tokenFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	transport := credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: args.serverName})
	connection, err := grpc.NewClient(args.address, grpc.WithTransportCredentials(transport))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	bearer := "Bearer " + strings.TrimSpace(string(token))
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", bearer, "clusterid", "Kubernetes")
	answer, err := pb.NewIstioCertificateServiceClient(connection).CreateCertificate(ctx, &pb.IstioCertificateRequest{
		Csr:              string(request),
		ValidityDuration: int64(args.lifetime.Seconds()),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			security.ImpersonatedIdentity: structpb.NewStringValue(args.identity),
		}},
	})
	if err != nil {
		return nil, err
	}
	return answer.CertChain, nil
}

// verify takes the answer apart as Istio's peers do: the leaf comes first, the roots last.
func verify(identity string, chain []string, key []byte) (*certificate, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("an answer of %d parts, which must be two at least", len(chain))
	}
	pair, err := tls.X509KeyPair([]byte(strings.Join(chain[:len(chain)-1], "\n")), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	intermediates, roots := x509.NewCertPool(), x509.NewCertPool()
	for _, part := range chain[1 : len(chain)-1] {
		intermediates.AppendCertsFromPEM([]byte(part))
	}
	roots.AppendCertsFromPEM([]byte(chain[len(chain)-1]))
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := leaf.Verify(options); err != nil {
			return nil, err
		}
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity {
		return nil, fmt.Errorf("the certificate is for %v", leaf.URIs)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		return nil, errors.New("the certificate has other names too")
	}
	return &certificate{
		Identity: identity,
		Chain:    len(pair.Certificate),
		Roots:    countPem(chain[len(chain)-1]),
		Key:      leaf.PublicKeyAlgorithm.String(),
		NotAfter: leaf.NotAfter,
		Lifetime: leaf.NotAfter.Sub(leaf.NotBefore).Seconds(),
	}, nil
}

func countPem(text string) int {
	count := 0
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		count++
	}
	return count
}
