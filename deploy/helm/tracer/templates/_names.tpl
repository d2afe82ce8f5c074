{{- define "tracer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "tracer.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "tracer.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tracer.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What does not need a namespace shares its names with the whole cluster. */}}
{{- define "tracer.clusterName" -}}
{{- $name := include "tracer.fullname" . }}
{{- if eq $name .Release.Namespace }}{{ $name }}{{ else }}{{ printf "%s-%s" $name .Release.Namespace | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tracer.selector" -}}
app.kubernetes.io/name: {{ include "tracer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tracer.labels" -}}
{{ include "tracer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tracer.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tracer.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tracer.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* The port that the agent serves on. */}}
{{- define "tracer.port" -}}
{{- $address := required "config.serve.address is needed: the probes ask there" .Values.config.serve.address }}
{{- if hasPrefix "127." $address }}
{{- fail "config.serve.address: the kubelet does not reach 127.0.0.1; take 0.0.0.0:9464" }}
{{- end }}
{{- regexFind "[0-9]+$" $address }}
{{- end }}

{{/* Those that were given, or what the agent's budget comes to. */}}
{{- define "tracer.resources" -}}
{{- if .Values.resources }}
{{- toYaml .Values.resources }}
{{- else }}
{{- $memory := toString .Values.config.budgets.memory }}
{{- if not (regexMatch "^[0-9]+[MG]i$" $memory) }}
{{- fail (printf "config.budgets.memory: %s is not as 128Mi or 1Gi; give `resources` too" $memory) }}
{{- end }}
{{- $unit := regexFind "[MG]i$" $memory }}
requests:
  cpu: 50m
  memory: {{ $memory }}
limits:
  cpu: "1"
  memory: {{ mul 2 (trimSuffix $unit $memory | atoi) }}{{ $unit }}
{{- end }}
{{- end }}
