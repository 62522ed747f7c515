{{/* Labels of everything; the context and the name of the part. */}}
{{- define "mesh.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: mesh
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .top.Release.Service }}
{{- end }}

{{/* What a Deployment's pods are found by. */}}
{{- define "mesh.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .top.Release.Name }}
{{- end }}

{{- define "mesh.image" -}}
{{ .top.Values.image.registry }}/{{ .name }}:{{ .top.Values.image.tag | default .top.Chart.AppVersion }}
{{- end }}

{{/* As unprivileged as a container can be. */}}
{{- define "mesh.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Replicas apart from each other, where there are nodes enough. */}}
{{- define "mesh.affinity" -}}
{{- if .part.affinity }}
{{- toYaml .part.affinity }}
{{- else -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "mesh.selector" . | nindent 12 }}
{{- end }}
{{- end }}

{{/* What both Deployments have in common in their pods. */}}
{{- define "mesh.scheduling" -}}
affinity:
  {{- include "mesh.affinity" . | nindent 2 }}
{{- with .part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .top.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The settings of the injector. */}}
{{- define "mesh.injectorConfig" -}}
trustDomain: {{ .Values.meshConfig.trustDomain | default "cluster.local" }}
cluster: {{ .Values.cluster }}
nativeSidecar: {{ .Values.proxy.nativeSidecar }}
rewriteProbes: {{ .Values.proxy.rewriteProbes }}
mergeMetrics: {{ .Values.proxy.mergeMetrics }}
compat:
  istioLabels: {{ .Values.compat.istioLabels }}
proxy:
  image: {{ include "mesh.image" (dict "top" . "name" "mesh-proxy") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  imagePullSecrets: {{ toJson .Values.proxy.imagePullSecrets }}
  logLevel: {{ .Values.proxy.logLevel | quote }}
  logFormat: {{ .Values.proxy.logFormat }}
  resources:
    {{- toYaml .Values.proxy.resources | nindent 4 }}
capture:
  {{- toYaml .Values.proxy.capture | nindent 2 }}
drain:
  {{- toYaml .Values.proxy.drain | nindent 2 }}
{{- end }}
