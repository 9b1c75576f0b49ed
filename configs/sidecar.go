package configs

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// APIVersion is the API group and version of every file.
const APIVersion = "chaperone.dev/v1alpha1"

// Kind is a kind of document.
type Kind string

// The kinds of documents.
const (
	KindSidecar   Kind = "Sidecar"
	KindGrant     Kind = "PluginGrant"
	KindGuardrail Kind = "PluginGuardrail"
	KindTest      Kind = "PluginTest"
	KindManifest  Kind = "PluginManifest"
	KindExemption Kind = "GrantExemption"
	KindRubric    Kind = "RiskRubric"
	KindTrust     Kind = "TrustRoot"
	KindChecklist Kind = "ComplianceChecklist"
)

// Kinds returns the kinds of documents that files hold.
func Kinds() []Kind {
	return []Kind{
		KindSidecar, KindGrant, KindGuardrail, KindTest, KindManifest, KindExemption, KindRubric, KindTrust, KindChecklist,
	}
}

// Object is one document of a kind whose spec is S, in the shape of a Kubernetes object.
type Object[S any] struct {
	// APIVersion is chaperone.dev/v1alpha1.
	APIVersion string `json:"apiVersion"`
	// Kind is the kind of the document.
	Kind Kind `json:"kind"`
	// Metadata names the document.
	Metadata Metadata `json:"metadata"`
	// Spec is the content of the document.
	Spec S `json:"spec"`
}

// Metadata names a document.
type Metadata struct {
	// Name is unique among the documents of the kind that are loaded together.
	Name string `json:"name"`
	// Labels are for people and their tools; nothing here depends on them.
	Labels map[string]string `json:"labels,omitempty"`
	// Annotations are for people and their tools; nothing here depends on them.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Sidecar is what one instance runs from: the spec of a Sidecar document. In a
// [Config] every default is filled in and every path is absolute.
type Sidecar struct {
	// Plugin is the name of the plugin that the sidecar serves.
	Plugin string `json:"plugin"`
	// Grants are files or folders of PluginGrants, relative to this file. Of a folder, its *.yaml, *.yml and *.json are read.
	Grants []string `json:"grants"`
	// Guardrails are files or folders of PluginGuardrails, relative to this file.
	Guardrails []string `json:"guardrails,omitempty"`
	// Trust makes the sidecar load only grants, guardrails, exemptions and a mode: observe that were signed; without it files are trusted as they are.
	Trust *Trust `json:"trust,omitempty"`
	// StateDir is a folder (0700) for what survives restarts: revocations, totals used, names given, the audit log and its key. One sidecar locks it. Relative to this file.
	StateDir string `json:"stateDir"`
	// Kernel says whether the kernel must confine and meter the plugin: required (the default), preferred or off.
	Kernel Kernel `json:"kernel,omitempty"`
	// Mode is enforce (the default) or observe: what is not granted passes without a credential, and is recorded.
	Mode authz.Mode `json:"mode,omitempty"`
	// ObserveUntil ends mode observe, and is required by it.
	ObserveUntil time.Time `json:"observeUntil,omitzero"`
	// SPIFFEIDs are the identities (spiffe://DOMAIN/PATH) by which Envoy's peer is known to be the plugin.
	SPIFFEIDs []string `json:"spiffeIDs,omitempty"`
	// Process is how chaperone run starts the plugin.
	Process Process `json:"process,omitzero"`
	// Listen is where the sidecar listens. An address left out is closed, the admin socket excepted.
	Listen Listen `json:"listen,omitzero"`
	// Envoy is an Envoy that the sidecar configures, and which does HTTP between the plugin and what is granted; none by default.
	Envoy *Envoy `json:"envoy,omitempty"`
	// DNS is how granted names are resolved.
	DNS DNS `json:"dns,omitzero"`
	// Vault is where credentials come from; required when a grant has any.
	Vault *Vault `json:"vault,omitempty"`
	// UpstreamProxy is a proxy that every connection to an upstream goes through; none by default.
	UpstreamProxy *UpstreamProxy `json:"upstreamProxy,omitempty"`
	// Audit is the audit log.
	Audit Audit `json:"audit,omitzero"`
	// OnBadReload is keep (the default: the last good policy stays in force) or quarantine.
	OnBadReload OnBadReload `json:"onBadReload,omitempty"`
	// LogLevel is the level of the operator's log: debug, info, warn or error. A flag --log-level overrides it; by default serve logs at info and run at warn.
	LogLevel LogLevel `json:"logLevel,omitempty"`
	// Drain is how long exchanges in flight may take to end at shutdown; by default 10s.
	Drain authz.Duration `json:"drain,omitempty"`
}

// LogLevel is a level of the operator's log.
type LogLevel string

// The levels of the operator's log.
const (
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

// Kernel says whether the kernel must confine and meter the plugin.
type Kernel string

// The settings of Kernel. There is never a silent downgrade: preferred without
// a kernel that can is shown by status and by every metric.
const (
	KernelRequired  Kernel = "required"
	KernelPreferred Kernel = "preferred"
	KernelOff       Kernel = "off"
)

// View is the part of the host's files and processes that the plugin sees.
type View string

// The views of a plugin.
const (
	// ViewOwn is a process table, IPC objects and directories for temporary and
	// runtime files of the plugin's own, and the rest of the host's file tree.
	ViewOwn View = "own"
	// ViewHost is what the plugin's user sees on the host.
	ViewHost View = "host"
)

// Network is the network that the plugin is started in.
type Network string

// The networks of a plugin.
const (
	// NetworkOwn is a network namespace whose only way out is the sidecar.
	NetworkOwn Network = "own"
	// NetworkHost is the network of the sidecar.
	NetworkHost Network = "host"
)

// OnBadReload is the reaction to changed files that cannot be loaded.
type OnBadReload string

// The reactions to changed files that cannot be loaded.
const (
	OnBadReloadKeep       OnBadReload = "keep"
	OnBadReloadQuarantine OnBadReload = "quarantine"
)

// Process is how chaperone run starts the plugin.
type Process struct {
	// User is a name, a uid, or dynamic (the default): a uid of the plugin's own, and under sudo the calling user.
	User User `json:"user,omitempty"`
	// Network is own (the default) or host.
	Network Network `json:"network,omitempty"`
	// View is own (the default) or host: whether the plugin has /tmp, /run, /dev/shm, a process table and IPC objects of its own. It counts while the kernel confines the plugin.
	View View `json:"view,omitempty"`
	// Listen are the TCP ports the plugin may serve, which are reachable on the host's loopback, and the Unix sockets, which are reachable under the same path: unix:/PATH, whose last part may hold one *. Empty by default.
	Listen []Service `json:"listen,omitempty"`
	// Files are the files and folders the plugin may use; without it, all that its user may.
	Files *Files `json:"files,omitempty"`
	// Env is added to the plugin's environment.
	Env map[string]string `json:"env,omitempty"`
	// UnsafeSameUser lets the plugin run as root or as the sidecar's own user while the kernel is required. Such a plugin can end its confinement.
	UnsafeSameUser bool `json:"unsafeSameUser,omitempty"`
}

// Files are what a plugin may use of the file system: these files, and all below
// these folders, relative to this file. The files that it needs to run (its own
// program, the system's libraries) are added to them when it is started.
type Files struct {
	// Read may be read and executed.
	Read []string `json:"read,omitempty"`
	// Write may be read, executed, written, made and removed.
	Write []string `json:"write,omitempty"`
}

// UserDynamic is the user that stands for a uid of the plugin's own.
const UserDynamic User = "dynamic"

// User is a user's name, a uid, or dynamic.
type User string

// UnmarshalText reads a user; it takes a number that is not in quotes too.
func (u *User) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" || len(s) > 256 || strings.ContainsAny(s, ":/ \t\n") || s[0] == '-' || s[0] == '+' {
		return fmt.Errorf("%q is not a user; write a name, a uid or dynamic", clip(s))
	}
	if strings.Trim(s, "0123456789") == "" && (len(s) > 10 || len(s) > 1 && s[0] == '0' || len(s) == 10 && s > "4294967294") {
		return fmt.Errorf("%q is not a uid; write a number from 1 to 4294967294 without leading zeros", clip(s))
	}
	*u = User(s)
	return nil
}

// root reports whether the user is known to be uid 0. Other names of uid 0
// are found when the plugin is started.
func (u User) root() bool { return u == "root" || u == "0" }

// Listen is where the sidecar listens.
type Listen struct {
	// Proxy is the forward proxy, which also receives what the kernel redirects: a loopback address and port.
	Proxy Address `json:"proxy,omitzero"`
	// ExtAuthz serves Envoy's envoy.service.auth.v3.Authorization: unix:PATH (mode 0600), or an address and port.
	ExtAuthz Address `json:"extAuthz,omitzero"`
	// ExtAuthzGroup makes the socket of ExtAuthz 0660 and of this group.
	ExtAuthzGroup string `json:"extAuthzGroup,omitempty"`
	// ExtAuthzTLS is mutual TLS for ExtAuthz over TCP. Without it no credential is handed out there.
	ExtAuthzTLS *ListenTLS `json:"extAuthzTLS,omitempty"`
	// Admin is the admin socket, unix:PATH; by default admin.sock in stateDir.
	Admin Address `json:"admin,omitzero"`
	// Metrics serves /metrics, /healthz and /readyz: an address and port. Metrics name rules and limits, and no secret; on another address than loopback whoever reaches it can read that.
	Metrics Address `json:"metrics,omitzero"`
	// Health serves /healthz and /readyz alone, for a prober that may not see metrics, or whose answers no scrape is to delay: an address and port.
	Health Address `json:"health,omitzero"`
}

// ListenTLS is mutual TLS on a listener. The files are PEM, relative to the
// Sidecar's file.
type ListenTLS struct {
	// CertFile is the listener's certificate, with those between it and its authority.
	CertFile string `json:"certFile"`
	// KeyFile is the certificate's private key.
	KeyFile string `json:"keyFile"`
	// ClientCAFile holds the authorities that clients' certificates are verified against.
	ClientCAFile string `json:"clientCAFile"`
	// Callers are the SPIFFE ids and DNS names of clients that credentials are handed to; by default every client whose certificate the authorities signed.
	Callers []string `json:"callers,omitempty"`
}

// DNS is how granted names are resolved.
type DNS struct {
	// Servers are asked; by default the host's.
	Servers []netip.AddrPort `json:"servers,omitempty"`
	// Hosts are static answers, looked up first.
	Hosts map[string][]netip.Addr `json:"hosts,omitempty"`
}

// Vault is the Vault that credentials come from.
type Vault struct {
	// Address is a URL, as in https://vault.example:8200.
	Address string `json:"address"`
	// Namespace is Vault Enterprise's; none by default.
	Namespace string `json:"namespace,omitempty"`
	// CAFile is a PEM file that replaces the system's authorities, relative to this file.
	CAFile string `json:"caFile,omitempty"`
	// Auth is how the sidecar logs in.
	Auth VaultAuth `json:"auth"`

	// CA is the content of CAFile.
	CA string `json:"-"`
}

// VaultAuth is how the sidecar logs in to Vault. Its files are relative to the
// Sidecar's, and are read at each login, so that they can be replaced.
type VaultAuth struct {
	// Method is approle, kubernetes, jwt, cert or token.
	Method VaultMethod `json:"method"`
	// Mount is where the method is mounted; by default its name.
	Mount string `json:"mount,omitempty"`
	// Role is the role to log in to: required for kubernetes, and for approle with secretIDWrapped; the mount's default for jwt, and any that the certificate fits for cert.
	Role string `json:"role,omitempty"`
	// RoleIDFile holds the AppRole's role id.
	RoleIDFile string `json:"roleIDFile,omitempty"`
	// SecretIDFile holds the AppRole's secret id.
	SecretIDFile string `json:"secretIDFile,omitempty"`
	// SecretIDWrapped is set if SecretIDFile holds a response-wrapping token, made by auth/MOUNT/role/ROLE/secret-id, and not the secret id.
	SecretIDWrapped bool `json:"secretIDWrapped,omitempty"`
	// JWTFile holds the token to log in with, for method jwt; for kubernetes by default the pod's own.
	JWTFile string `json:"jwtFile,omitempty"`
	// CertFile is the PEM certificate to log in with, for method cert.
	CertFile string `json:"certFile,omitempty"`
	// KeyFile is its private key.
	KeyFile string `json:"keyFile,omitempty"`
	// TokenFile holds a token, for method token.
	TokenFile string `json:"tokenFile,omitempty"`
}

// VaultMethod is a way to log in to Vault.
type VaultMethod string

// The ways to log in to Vault.
const (
	VaultAppRole    VaultMethod = "approle"
	VaultKubernetes VaultMethod = "kubernetes"
	VaultJWT        VaultMethod = "jwt"
	VaultCert       VaultMethod = "cert"
	VaultToken      VaultMethod = "token"
)

// serviceAccountToken is where Kubernetes puts the token of a pod's service
// account (Kubernetes documentation, "Configure Service Accounts for Pods").
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// UpstreamProxy is a proxy that connections to upstreams are made through, by
// CONNECT to the address that was already checked.
type UpstreamProxy struct {
	// URL is the proxy, as in http://proxy.corp.example:3128.
	URL string `json:"url"`
	// NoProxy are reached without it: names (also those below them), .NAME (only those below) and, for hosts that are addresses, addresses and ranges of them.
	NoProxy []string `json:"noProxy,omitempty"`
}

// Audit is the audit log.
type Audit struct {
	// File is the log, relative to stateDir; by default audit.jsonl.
	File string `json:"file,omitempty"`
	// MaxSize is when a file is rotated; by default 256MiB.
	MaxSize authz.Size `json:"maxSize,omitempty"`
	// Keep is how many rotated files are kept; by default 20.
	Keep int `json:"keep,omitempty"`
	// Paths is masked (what wildcards matched, and queries, are written as keyed hashes) or full. The default is masked, and full while the Sidecar or a rule observes, since what is observed is to be read.
	Paths AuditPaths `json:"paths,omitempty"`
}

// AuditPaths is how paths are written to the audit log.
type AuditPaths string

// How paths are written to the audit log.
const (
	AuditPathsMasked AuditPaths = "masked"
	AuditPathsFull   AuditPaths = "full"
)

// Address is where something listens: unix:PATH, or an IP address and a port.
// The zero Address is closed.
type Address struct {
	Network string // "unix" or "tcp", as net.Listen takes it
	Addr    string // the path, or address:port
}

// IsZero reports whether nothing listens.
func (a Address) IsZero() bool { return a == Address{} }

// IsUnix reports whether the address is a socket in the file system.
func (a Address) IsUnix() bool { return a.Network == "unix" }

// maxSocketPath is what sun_path of sockaddr_un holds without its final NUL
// (unix(7)).
const maxSocketPath = 107

// UnmarshalText reads an address. Its error lists the valid forms.
func (a *Address) UnmarshalText(text []byte) error {
	s := string(text)
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" || strings.HasPrefix(path, "//") || strings.HasPrefix(path, "@") {
			return fmt.Errorf("%q is not a socket; write unix:PATH, as in unix:/run/chaperone/admin.sock", clip(s))
		}
		*a = Address{"unix", path}
		return nil
	}
	addr, err := netip.ParseAddrPort(s)
	if err != nil || addr.Addr().Zone() != "" {
		return fmt.Errorf("%q is not an address; write unix:PATH, or an IP address and a port, as in 127.0.0.1:15001", clip(s))
	}
	*a = Address{"tcp", addr.String()}
	return nil
}

// String returns the address as UnmarshalText reads it, and "" for none.
func (a Address) String() string {
	if a.IsUnix() {
		return "unix:" + a.Addr
	}
	return a.Addr
}

// MarshalText returns String.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// loopback reports whether only this host can reach the address.
func (a Address) loopback() bool {
	addr, err := netip.ParseAddrPort(a.Addr)
	return a.IsUnix() || err == nil && addr.Addr().Unmap().IsLoopback()
}
