package configs

import (
	"crypto/tls"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Config is a Sidecar file with all that it names, read, checked and compiled.
type Config struct {
	// Path is the Sidecar's file, as it was named.
	Path string
	// Name is the Sidecar's metadata.name.
	Name string
	// Sidecar is the spec, with every default filled in and every path absolute.
	Sidecar Sidecar
	// Grants are those for the Sidecar's plugin; Guardrails are all that were read.
	Grants     []authz.Grant
	Guardrails []authz.Guardrail
	// Policy is compiled from them.
	Policy *authz.Policy
	// Trust is what was verified, nil without spec.trust.
	Trust *Trusted
	// Containment are the rules of the guardrails that apply to the plugin.
	Containment []Containment
	// Files are all files that were read, for the record of a reload.
	Files []File
	// Warnings are what is allowed and hardly meant, and what ends soon.
	Warnings Errors
	// Expired are the grants that had ended when they were read.
	Expired Errors

	seen          map[string]string // by absolute path: the state of each file and folder that was looked at
	observesUntil time.Time         // found once: every audit record asks for it
}

// ObservesUntil returns when the Sidecar and the last of its rules stop to observe;
// the zero time when none of them does.
func (c *Config) ObservesUntil() time.Time { return c.observesUntil }

// lastObservation finds [Config.ObservesUntil] among the Sidecar and all rules.
func (c *Config) lastObservation() time.Time {
	var last time.Time
	if c.Sidecar.Mode == authz.ModeObserve {
		last = c.Sidecar.ObserveUntil
	}
	for _, g := range c.Grants {
		for _, r := range g.Rules {
			if r.Mode == authz.ModeObserve && r.ObserveUntil.After(last) {
				last = r.ObserveUntil
			}
		}
	}
	return last
}

// File is a file that was read.
type File struct {
	Path   string `json:"path"`   // as it was named
	SHA256 string `json:"sha256"` // of its content, in hexadecimal
}

// Load reads the Sidecar in the file at path, and the grants, guardrails and
// certificates it names, and compiles them as of now. It returns either a
// whole Config or, as [Errors], everything that is wrong with any file.
func Load(path string, now time.Time) (*Config, error) {
	l := newLoader(now)
	c := l.load(path)
	if len(l.errs) > 0 {
		l.checkGrants(l.order) // the grants of a faulty Sidecar are checked too
	}
	if err := l.failure(); err != nil {
		return nil, err
	}
	c.Path, c.Files, c.Warnings, c.seen = path, l.files, l.warned(), l.seen
	c.Expired = l.expired.sorted(l.names())
	return c, nil
}

// load loads the Sidecar at path. It returns nil, or a Config that must not be
// used, when the loader has errors.
func (l *loader) load(path string) *Config {
	documents := l.named(path)
	var sidecars []*source
	for _, s := range documents {
		if s.kind == KindSidecar {
			sidecars = append(sidecars, s)
		}
	}
	switch {
	case len(sidecars) == 0 && len(l.errs) == 0:
		l.errs = append(l.errs, Error{File: path, Message: "holds no Sidecar; write a document of kind: Sidecar"})
	case len(sidecars) > 1:
		sidecars[1].reporter(&l.errs)("kind", "is a second Sidecar; one file holds one")
	}
	if len(sidecars) == 0 {
		return nil
	}
	return l.sidecar(sidecars[0], documents)
}

// failure returns what is wrong, or nil.
func (l *loader) failure() error {
	if len(l.errs) == 0 {
		return nil
	}
	return l.errs.sorted(l.names())
}

// sidecar loads what a Sidecar names and compiles it. beside are the documents
// of its own file.
func (l *loader) sidecar(s *source, beside []*source) *Config {
	report := s.reporter(&l.errs)
	spec := &s.sidecar.Spec
	if !authz.IsName(s.sidecar.Metadata.Name) && s.sidecar.Metadata.Name != "" {
		report("metadata.name", notAName, clip(s.sidecar.Metadata.Name))
	}
	l.beginTrust(s)
	spec.validate(l.now, report)
	documents := slices.Clone(beside)
	for i, ref := range spec.Grants {
		documents = append(documents, l.reference(s, at("spec.grants", i), ref, true)...)
	}
	for i, ref := range spec.Guardrails {
		documents = append(documents, l.reference(s, at("spec.guardrails", i), ref, false)...)
	}
	documents = l.endTrust(documents)
	l.sidecarFiles(s)
	l.staticHosts(s)
	l.warn(s)
	dir, err := filepath.Abs(filepath.Dir(s.file))
	if err != nil {
		report("", "cannot be made absolute: %v", err)
	}
	spec.complete(dir)
	spec.Listen.validateComplete(report)
	spec.validateEnvoyComplete(report)
	spec.validateApart(filepath.Join(dir, filepath.Base(s.file)), report)

	c := &Config{Name: s.sidecar.Metadata.Name, Sidecar: *spec}
	if l.trust != nil {
		c.Trust = l.trust.out
	}
	l.collect(c, s, documents)
	c.observesUntil = c.lastObservation()
	c.Policy = l.compile(c.input(), documents)
	return c
}

// input returns what the policy is compiled from.
func (c *Config) input() authz.Input {
	return authz.Input{
		Plugin: c.Sidecar.Plugin, Grants: c.Grants, Guardrails: c.Guardrails,
		Observe: c.Sidecar.Mode == authz.ModeObserve, ObserveUntil: c.Sidecar.ObserveUntil,
		Exemptions: c.Trust.exemptions(),
	}
}

// collect sorts documents into the Config by kind.
func (l *loader) collect(c *Config, s *source, documents []*source) {
	for _, d := range documents {
		switch {
		case d.kind == KindSidecar && d.file != s.file:
			d.reporter(&l.errs)("kind", "is a Sidecar; %s names this file for its grants and guardrails, keep Sidecars apart", s.file)
		case d.kind == KindGuardrail:
			c.Guardrails = append(c.Guardrails, d.guardrail.Spec.Guardrail)
			if d.guardrail.Spec.AppliesTo(c.Sidecar.Plugin) {
				c.Containment = append(c.Containment, d.guardrail.Spec.Containment...)
			}
		case d.kind == KindGrant && d.grant.Spec.Plugin == c.Sidecar.Plugin:
			c.Grants = append(c.Grants, d.grant.Spec.Grant)
			c.Sidecar.validateGrant(d.grant.Spec.Grant, s.file, d.reporter(&l.errs))
			c.Sidecar.warnGrantEnvoy(d.grant.Spec.Grant, d.reporter(&l.warnings))
		case d.kind == KindGrant && d.grant.Spec.Plugin != "":
			d.reporter(&l.warnings)("spec.plugin", "is %s, which this sidecar does not serve (it serves %s); the grant is not used", d.grant.Spec.Plugin, c.Sidecar.Plugin)
		}
	}
	if len(c.Grants) == 0 {
		effect := "refused"
		if c.Sidecar.Mode == authz.ModeObserve {
			effect = "observed until " + c.Sidecar.ObserveUntil.Format(time.RFC3339) + ", and refused then"
		}
		s.reporter(&l.warnings)("spec.grants", "hold no PluginGrant for plugin %s; everything it asks for is %s", c.Sidecar.Plugin, effect)
	}
}

// warn notes what is allowed and hardly meant.
func (l *loader) warn(s *source) {
	warn := s.reporter(&l.warnings)
	spec := s.sidecar.Spec
	if spec.Process.UnsafeSameUser {
		warn("spec.process.unsafeSameUser", "lets the plugin end its own confinement")
	}
	if a := spec.Listen.ExtAuthz; a.Network == "tcp" && spec.Listen.ExtAuthzTLS == nil {
		warn("spec.listen.extAuthz", "is plain TCP: rules with a credential are not enforceable there; use unix:PATH or extAuthzTLS")
	}
	if m := spec.Listen.Metrics; !m.IsZero() && !m.loopback() {
		warn("spec.listen.metrics", "can be read from other hosts, and in a shared network by the plugin")
	}
	spec.warnEnvoy(warn)
	if v := spec.Vault; v != nil && strings.HasPrefix(v.Address, "http://") && !loopbackURL(v.Address) {
		warn("spec.vault.address", "sends tokens and credentials over the network in the clear; use https")
	}
	if spec.Kernel == KernelOff && spec.Process.UnsafeSameUser {
		warn("spec.process.unsafeSameUser", "does nothing with kernel: off")
	}
	if user := spec.Process.User; spec.Kernel == KernelOff && user != "" && user != UserDynamic {
		warn("spec.process.user", "is not used with kernel: off, where the plugin runs as the sidecar's own user; start the sidecar as %s, or have the kernel confine the plugin", clip(string(user)))
	}
	if spec.Kernel == KernelOff && len(spec.Process.Listen) > 0 {
		warn("spec.process.listen", "does not keep the plugin from other ports with kernel: off, unless it has a network of its own")
	}
	if spec.Process.Files != nil {
		for _, list := range spec.Process.Files.lists() {
			for i, path := range *list.paths {
				if path != "" && !exists(s.beside(path)) {
					warn(at(list.field, i), "%s does not exist yet; the plugin does not start without it", s.beside(path))
				}
			}
		}
	}
}

// sidecarFiles reads the certificates that a Sidecar names.
func (l *loader) sidecarFiles(s *source) {
	spec := &s.sidecar.Spec
	report := s.reporter(&l.errs)
	if v := spec.Vault; v != nil {
		v.CA = l.certificates(s, "spec.vault.caFile", v.CAFile, report)
		for _, f := range v.Auth.fields() {
			if f.isFile && f.value != "" && !exists(s.beside(f.value)) {
				s.reporter(&l.warnings)("spec.vault.auth."+f.name, "%s does not exist yet; it is read at each login", s.beside(f.value))
			}
		}
	}
	if t := spec.Listen.ExtAuthzTLS; t != nil {
		l.certificates(s, "spec.listen.extAuthzTLS.clientCAFile", t.ClientCAFile, report)
		cert := l.certificates(s, "spec.listen.extAuthzTLS.certFile", t.CertFile, report)
		if key, err := l.bytes(s.beside(t.KeyFile), false); t.KeyFile == "" {
			return // reported as missing
		} else if err != nil {
			report("spec.listen.extAuthzTLS.keyFile", "%s %v", s.beside(t.KeyFile), err)
		} else if _, err := tls.X509KeyPair([]byte(cert), key); cert != "" && err != nil {
			report("spec.listen.extAuthzTLS.keyFile", "%s does not go with the certificate: %s", s.beside(t.KeyFile), strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
}

// grantFiles reads the certificates that a grant names.
func (l *loader) grantFiles(s *source, report reporter) {
	for i := range s.grant.Spec.Rules {
		t := &s.grant.Spec.Rules[i].To.TLS
		t.CA = l.authority(s, at("spec.rules", i)+".to.tls.caFile", t.CAFile, report)
	}
	for i := range s.grant.Spec.Credentials {
		if o := s.grant.Spec.Credentials[i].Inject.OAuth2; o != nil {
			o.CA = l.authority(s, at("spec.credentials", i)+".inject.oauth2.caFile", o.CAFile, report)
		}
	}
}

// authority reads the certificates of a caFile. A signed grant is bound to their content:
// whoever may write the file could otherwise choose whom the sidecar trusts.
func (l *loader) authority(s *source, field, path string, report reporter) string {
	pem := l.certificates(s, field, path, report)
	if pem == "" || s.signed == nil {
		return pem
	}
	digest := dsse.Digest([]byte(pem))
	if b := s.grant.Spec.Binding; b == nil || !slices.Contains(b.Authorities, grantcheck.Authority{File: path, Digest: digest}) {
		report(field, "%s has digest %s, which spec.binding.authorities does not have for this file; put back the one that was reviewed, or have the grant reviewed and issued again", s.beside(path), digest)
	}
	return pem
}

// compile compiles what was read of documents and reports what is wrong with it.
func (l *loader) compile(in authz.Input, documents []*source) *authz.Policy {
	policy, problems := authz.Compile(in, l.now)
	byOrigin := make(map[authz.Origin]*source, len(documents))
	var places []string
	for _, d := range documents {
		byOrigin[d.origin()] = d
	}
	for _, p := range problems {
		// A ceiling's problem names the guardrail's field, (ORIGIN: FIELD).
		for origin, d := range byOrigin {
			mark := "(" + string(origin) + ": "
			if _, rest, ok := strings.Cut(p.Message, mark); ok {
				name, _, _ := strings.Cut(rest, ")")
				n := d.root.find(name)
				places = append(places, mark+name+")", "("+placeOf(d.file, n)+")")
			}
		}
	}
	replace := strings.NewReplacer(places...)
	for _, p := range problems {
		d := byOrigin[p.Origin]
		if d == nil {
			l.errs = append(l.errs, Error{Field: p.Path, Message: replace.Replace(p.Message)})
		} else {
			d.reporter(&l.errs)(p.Path, "%s", replace.Replace(p.Message))
		}
	}
	return policy
}
