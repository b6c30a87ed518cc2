{{/* The image, by digest where one is given. */}}
{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* Where each platform keeps what belongs to CNI, and what SELinux lets write there; values.yaml has the table. */}}
{{- define "weft.platforms" -}}
"": {}
bottlerocket: {seLinuxOptions: {user: system_u, role: system_r, type: super_t, level: s0}}
eks: {}
gke: {binDir: /home/kubernetes/bin}
k3d: {binDir: /bin, confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d}
k3s: {binDir: /var/lib/rancher/k3s/data/cni, confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d}
microk8s: {binDir: /var/snap/microk8s/current/opt/cni/bin, confDir: /var/snap/microk8s/current/args/cni-network}
minikube: {netnsDir: /var/run/docker/netns}
openshift: {binDir: /var/lib/cni/bin, confDir: /etc/cni/multus/net.d, seLinuxOptions: {type: spc_t}}
{{- end -}}

{{/* Directories of CNI on the node: given ones, else the platform's, else the customary ones. */}}
{{- define "weft.cni" -}}
{{- $platform := get (include "weft.platforms" . | fromYaml) .Values.platform -}}
binDir: {{ .Values.cni.binDir | default $platform.binDir | default "/opt/cni/bin" }}
confDir: {{ .Values.cni.confDir | default $platform.confDir | default "/etc/cni/net.d" }}
netnsDir: {{ .Values.cni.netnsDir | default $platform.netnsDir | default "/var/run/netns" }}
{{- end -}}

{{/* SELinux context of the agent: the given one, else the platform's. */}}
{{- define "weft.seLinuxOptions" -}}
{{- $platform := get (include "weft.platforms" . | fromYaml) .Values.platform -}}
{{- with .Values.agent.seLinuxOptions | default $platform.seLinuxOptions -}}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{/* Where certificates come from. */}}
{{- define "weft.caAddress" -}}
{{ .Values.ca.address | default (printf "https://weft-controller.%s.svc:15012" .Release.Namespace) }}
{{- end -}}

{{/* Settings of the mesh: those with a value of their own win. */}}
{{- define "weft.mesh" -}}
{{- $mesh := dict "trustDomain" .Values.trustDomain -}}
{{- if .Values.rootNamespace -}}{{- $_ := set $mesh "rootNamespace" .Values.rootNamespace -}}{{- end -}}
{{ merge $mesh .Values.meshConfig | toYaml }}
{{- end -}}

{{/* Kinds of Istio that are read and validated, by API group. */}}
{{- define "weft.kinds" -}}
- group: networking.istio.io
  plurals:
  - destinationrules
  - envoyfilters
  - gateways
  - proxyconfigs
  - serviceentries
  - sidecars
  - virtualservices
  - workloadentries
  - workloadgroups
- group: security.istio.io
  plurals: [authorizationpolicies, peerauthentications, requestauthentications]
- group: telemetry.istio.io
  plurals: [telemetries]
- group: extensions.istio.io
  plurals: [trafficextensions, wasmplugins]
{{- end -}}
