{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "sluice.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "sluice.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Cluster-scoped objects carry the namespace, so that two releases do not meet. */}}
{{- define "sluice.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "sluice.fullname" .) }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "sluice.labels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sluice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name an account, or let serviceAccount.create be true" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "sluice.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* The namespaces worked in, with the operator's own, as a list in JSON; empty for all. */}}
{{- define "sluice.namespaces" -}}
{{- if .Values.watchNamespaces }}
{{- append .Values.watchNamespaces .Release.Namespace | uniq | toJson }}
{{- else }}
{{- list | toJson }}
{{- end }}
{{- end }}

{{- define "sluice.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sluice.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What the operator needs in each namespace it works in. */}}
{{- define "sluice.rules" -}}
# Its own kinds.
- apiGroups: [sluice.dev]
  resources: [rollouts, analysistemplates, metricproviders, deployrepos, interventions]
  verbs: [get, list, watch]
- apiGroups: [sluice.dev]
  resources: [analysisruns]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [sluice.dev]
  resources: [rollouts/status, analysisruns/status, deployrepos/status, interventions/status]
  verbs: [patch]
# A standby that gets a webhook stamps the DeployRepo, and the leader looks.
- apiGroups: [sluice.dev]
  resources: [deployrepos]
  verbs: [patch]
# What a deleted Rollout steered is handed back before it goes: that takes a finalizer.
- apiGroups: [sluice.dev]
  resources: [rollouts]
  verbs: [patch]
# An owner reference that holds up the owner's deletion needs this where that is checked.
- apiGroups: [sluice.dev]
  resources: [rollouts/finalizers]
  verbs: [update]
# The pods of each revision.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch, create, patch, delete]
# What keeps a pod from starting, and when it is really gone.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# A restart, as far as PodDisruptionBudgets allow.
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# The template of a Rollout with `workloadRef`, and how many pods that Deployment has of its own.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
# Which side a Service selects, and whether its endpoints are ready.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
# The weights.
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes, tlsroutes, tcproutes]
  verbs: [get, list, watch, patch]
# One event for each transition.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# Credentials, by their exact names. Never list or watch.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
  {{- with .Values.rbac.secretNames }}
  resourceNames: {{ toJson . }}
  {{- end }}
{{- end }}

{{- define "sluice.syncRules" -}}
{{- range .Values.sync.rules }}
- apiGroups: {{ toJson .apiGroups }}
  resources: {{ toJson .resources }}
  verbs: [get, create, patch, delete]
{{- end }}
{{- end }}

{{/* A pod of the operator. With `handBack` it hands back what every Rollout steers, and ends. */}}
{{- define "sluice.pod" -}}
{{- $namespaces := include "sluice.namespaces" . | fromJsonArray -}}
serviceAccountName: {{ include "sluice.serviceAccountName" . }}
automountServiceAccountToken: true
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {{- include "sluice.podSecurityContext" . | nindent 2 }}
terminationGracePeriodSeconds: 30
containers:
- name: operator
  image: {{ include "sluice.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
  - operator
  - {{ printf "--cluster-name=%s" .Values.clusterName | quote }}
  - --concurrency={{ .Values.concurrency }}
  {{- if $namespaces }}
  - --watch-namespaces={{ join "," $namespaces }}
  {{- end }}
  {{- if .handBack }}
  - --hand-back={{ include "sluice.fullname" . }}
  {{- end }}
  {{- range .Values.extraArgs }}
  - {{ . | quote }}
  {{- end }}
  env:
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: SLUICE_LOG
    value: {{ .Values.logLevel | quote }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  ports:
  - {name: metrics, containerPort: 8080, protocol: TCP}
  - {name: probes, containerPort: 8081, protocol: TCP}
  - {name: webhook, containerPort: 9292, protocol: TCP}
  livenessProbe:
    httpGet: {path: /healthz, port: probes}
    periodSeconds: 10
    timeoutSeconds: 5
  # Ready means that every cache has seen its whole list.
  readinessProbe:
    httpGet: {path: /readyz, port: probes}
    periodSeconds: 2
    timeoutSeconds: 2
  resources: {{- toYaml .Values.resources | nindent 4 }}
  securityContext: {{- include "sluice.securityContext" . | nindent 4 }}
  volumeMounts:
  - {name: cache, mountPath: /var/cache/sluice}
  - {name: tmp, mountPath: /tmp}
volumes:
- name: cache
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
