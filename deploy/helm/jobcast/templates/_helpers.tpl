{{- define "jobcast.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "jobcast.selector" -}}
app.kubernetes.io/name: jobcast
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "jobcast.labels" -}}
{{ include "jobcast.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* jobcast.toml: the values' settings, with the listeners and the times of leaving that the rest of the chart counts on. */}}
{{- define "jobcast.toml" -}}
{{- $own := dict
      "http" (dict "listen" "0.0.0.0:8080")
      "admin" (dict "listen" "0.0.0.0:9464")
      "shutdown" (dict "grace" (printf "%ds" (int .Values.shutdown.grace)) "drain" (printf "%ds" (int .Values.shutdown.drain))) -}}
{{- if eq .Values.settings.source.kind "sqlite" -}}
{{- $own = merge $own (dict "source" (dict "sqlite" (dict "path" "/data/jobcast.db"))) -}}
{{- end -}}
{{ toToml (mergeOverwrite (deepCopy .Values.settings) $own) }}
{{- end -}}
