// The templates of a chart, executed by Helm's own engine: what `helm template` prints, without the rest of
// Helm, so that it is built in a minute.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
)

// The cluster that is imagined while rendering.
const kubernetes = "v1.33.0"

// many is a flag that may be given several times.
type many []string

func (m *many) String() string     { return strings.Join(*m, ",") }
func (m *many) Set(v string) error { *m = append(*m, v); return nil }

type options struct {
	release, namespace   string
	values, set, version many
	notes                bool
}

func main() {
	var o options
	flag.StringVar(&o.release, "release", "weft", "name of the release")
	flag.StringVar(&o.namespace, "namespace", "weft-system", "namespace of the release")
	flag.Var(&o.values, "values", "file with values; may be repeated")
	flag.Var(&o.set, "set", "KEY=VALUE; may be repeated")
	flag.Var(&o.version, "api-version", "GROUP/VERSION/KIND that the cluster has; may be repeated")
	flag.BoolVar(&o.notes, "notes", false, "print the notes instead of the manifests")
	flag.Parse()
	if flag.NArg() != 2 {
		fail(fmt.Errorf("usage: weft-helm [flags] template|lint CHART"))
	}
	path := flag.Arg(1)
	switch flag.Arg(0) {
	case "template":
		fail(template(path, o))
	case "lint":
		fail(lintChart(path, o))
	default:
		fail(fmt.Errorf("unknown command %q", flag.Arg(0)))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft-helm:", err)
		os.Exit(1)
	}
}

// userValues are those of the files, in order, and then those of -set.
func userValues(o options) (map[string]any, error) {
	values := map[string]any{}
	for _, file := range o.values {
		read, err := chartutil.ReadValuesFile(file)
		if err != nil {
			return nil, err
		}
		values = chartutil.CoalesceTables(read, values)
	}
	for _, set := range o.set {
		if err := strvals.ParseInto(set, values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func capabilities(o options) (*chartutil.Capabilities, error) {
	caps := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(kubernetes)
	if err != nil {
		return nil, err
	}
	caps.KubeVersion = *version
	caps.APIVersions = append(caps.APIVersions, o.version...)
	return caps, nil
}

func render(c *chart.Chart, o options) (map[string]string, *chartutil.Capabilities, error) {
	values, err := userValues(o)
	if err != nil {
		return nil, nil, err
	}
	caps, err := capabilities(o)
	if err != nil {
		return nil, nil, err
	}
	release := chartutil.ReleaseOptions{Name: o.release, Namespace: o.namespace, Revision: 1, IsInstall: true}
	// This is also where the values are compared with the schema.
	all, err := chartutil.ToRenderValues(c, values, release, caps)
	if err != nil {
		return nil, nil, err
	}
	files, err := engine.Render(c, all)
	return files, caps, err
}

func template(path string, o options) error {
	c, err := loader.Load(path)
	if err != nil {
		return err
	}
	files, caps, err := render(c, o)
	if err != nil {
		return err
	}
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			if o.notes {
				fmt.Print(text)
			}
			delete(files, name)
		}
	}
	if o.notes {
		return nil
	}
	hooks, manifests, err := releaseutil.SortManifests(files, caps.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return err
	}
	for _, manifest := range manifests {
		fmt.Printf("---\n%s\n", strings.TrimSpace(manifest.Content))
	}
	for _, hook := range hooks {
		fmt.Printf("---\n%s\n", strings.TrimSpace(hook.Manifest))
	}
	return nil
}

func lintChart(path string, o options) error {
	values, err := userValues(o)
	if err != nil {
		return err
	}
	version, err := chartutil.ParseKubeVersion(kubernetes)
	if err != nil {
		return err
	}
	result := lint.AllWithKubeVersion(path, values, o.namespace, version)
	for _, message := range result.Messages {
		fmt.Println(message)
	}
	if result.HighestSeverity >= support.WarningSev {
		return fmt.Errorf("the chart has mistakes")
	}
	return nil
}
