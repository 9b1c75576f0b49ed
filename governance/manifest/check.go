package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// Guardrail is a guardrail that a manifest is checked against.
type Guardrail struct {
	Name string // metadata.name
	Path string // of its file, for messages
	Spec configs.GuardrailSpec
	// Data is the document, for places in messages; nil without them.
	Data []byte
	// Rules are its conditions, if [CompileRules] compiled them before; nil to compile them.
	Rules *Rules
}

// position returns where a field of the guardrail is written.
func (g *Guardrail) position(field string) configs.Position {
	if g.Data == nil {
		return configs.Position{File: g.Path, Line: 1, Column: 1}
	}
	return configs.NewLocator(g.Path, g.Data).Position(field)
}

// Input is what a manifest is checked with.
type Input struct {
	File *File
	// Guardrails are all of the repository; those that apply to the plugin are used.
	Guardrails []Guardrail
	// Exemptions are verified ones; Uses are their uses so far, by digest.
	Exemptions []grantcheck.Exemption
	Uses       map[string]int64
	// Band is the band of risk, "" while it is not known.
	Band configs.Band
	Now  time.Time
	// PluginFolder and VersionFolder are the names of the folders that hold the manifest; "" without them.
	PluginFolder, VersionFolder string
	// Previous is the manifest of the version before; nil without one.
	Previous *File
	// Dir is the manifest's folder, for the documents that it names; nil without it.
	Dir fs.FS
}

// Check judges a manifest: the permissions as the grant that they would become, under the guardrails and exemptions; the
// conditions of guardrails; names, versions, credentials, documents, and what looks like a secret. It reports everything
// that it finds. ctx bounds the time of conditions and proofs; what is not finished by then is refused.
func Check(ctx context.Context, in Input) Result {
	c := &checker{in: in, m: &in.File.Spec, out: Result{Plugin: in.File.Plugin, Version: in.File.Spec.Version, Manifest: in.File.Digest}}
	c.names()
	c.versions()
	c.todos()
	c.credentials()
	c.classes()
	c.docs()
	c.secrets()
	c.composed(ctx)
	c.controls()
	c.rules(ctx)
	c.previous(ctx)
	c.faults()
	c.out.sort()
	return c.out
}

type checker struct {
	in  Input
	m   *configs.PluginManifest
	out Result
}

// faults adds what chaperone check reports of the file, and the other checks do not: texts with
// characters that are not visible, contacts, addresses.
func (c *checker) faults() {
	known := func(field string) bool {
		return slices.ContainsFunc(c.out.Findings, func(f Finding) bool {
			return f.Level == LevelError && f.Field != "" && (strings.HasPrefix(f.Field, field) || strings.HasPrefix(field, f.Field))
		})
	}
	for _, fault := range configs.ManifestFaults(c.in.File.Plugin, c.m) {
		if !known(fault.Field) {
			c.add(checkSchema, LevelError, fault.Field, "", "%s", fault.Message)
		}
	}
}

// add adds a finding of a field.
func (c *checker) add(check string, level Level, field, fix, format string, args ...any) {
	c.addFinding(Finding{Check: check, Level: level, Field: field, Fix: fix, Message: fmt.Sprintf(format, args...)})
}

// addFinding adds a finding, with the place of its field.
func (c *checker) addFinding(f Finding) {
	const most = 1000
	if len(c.out.Findings) >= most {
		return
	}
	if f.File == "" {
		f.Position = c.in.File.Position(f.Field)
	}
	if f.Permission == "" {
		f.Permission = c.in.File.permission(permissionIndex(f.Field))
	}
	c.out.Findings = append(c.out.Findings, f)
}

// permissionIndex returns the index in a field as spec.permissions[2].to, -1 in any other.
func permissionIndex(field string) int {
	i := -1
	if _, err := fmt.Sscanf(field, "spec.permissions[%d]", &i); err != nil {
		return -1
	}
	return i
}

func (c *checker) names() {
	plugin := c.in.File.Plugin
	if !authz.IsName(plugin) {
		c.add(checkName, LevelError, "metadata.name", "use lower-case letters and digits, with dashes, dots and underscores between them", "%s is not a name", quote(plugin))
	}
	if folder := c.in.PluginFolder; folder != "" && folder != plugin {
		c.add(checkName, LevelError, "metadata.name", "move the manifest to plugins/"+plugin+", or change the name", "is %s, and the folder is named %s", quote(plugin), quote(folder))
	}
	for required, versions := range c.m.Requires {
		field := "spec.requires." + required
		switch err := checkRange(versions); {
		case !authz.IsName(required) || required == plugin:
			c.add(checkName, LevelError, field, "name another plugin", "%s is not the name of another plugin", quote(required))
		case err != nil:
			c.add(checkVersion, LevelError, field, "", "%v", err)
		}
	}
}

func (c *checker) versions() {
	version, err := parseVersion(c.m.Version)
	if err != nil {
		c.add(checkVersion, LevelError, "spec.version", "", "%v", err)
	}
	if folder := c.in.VersionFolder; folder != "" && folder != c.m.Version {
		c.add(checkVersion, LevelError, "spec.version", "move the manifest to the folder "+clipText(c.m.Version)+", or change the version", "is %s, and the folder is named %s", quote(c.m.Version), quote(folder))
	}
	for i, s := range c.m.Supersedes {
		field := fmt.Sprintf("spec.supersedes[%d]", i)
		earlier, err := parseVersion(s)
		switch {
		case err != nil:
			c.add(checkVersion, LevelError, field, "", "%v", err)
		case version != nil && !earlier.LessThan(version):
			c.add(checkVersion, LevelError, field, "name versions before it", "%s is not before %s", s, c.m.Version)
		}
	}
	if v := c.m.Host.APIVersions; v != "" {
		if err := checkRange(v); err != nil {
			c.add(checkVersion, LevelError, "spec.host.apiVersions", "", "%v", err)
		}
	}
	if a := c.m.Support; !a.EndOfSupport.IsZero() && !a.EndOfSupport.After(c.in.Now) {
		c.add(checkVersion, LevelError, "spec.support.endOfSupport", "submit a version that is supported", "is past: this version is not supported any more")
	}
}

// todos finds what a draft left open.
func (c *checker) todos() {
	for _, f := range []struct{ field, value, fix string }{
		{"spec.vendor", c.m.Vendor, "write the domain of who makes the plugin, as in acme.example"},
		{"spec.purpose", c.m.Purpose, "write what the plugin is for"},
	} {
		if isTodo(f.value) {
			c.add(checkTodo, LevelError, f.field, f.fix, "is still %s", todoText)
		}
	}
	if k := c.m.Artifact.Kind; k != grantcheck.ArtifactFile && k != grantcheck.ArtifactTree && k != grantcheck.ArtifactImage {
		c.add(checkSchema, LevelError, "spec.artifact.kind", "write file, tree or image", "%s is not a kind of artifact", quote(string(k)))
	}
	if c.m.Artifact.Digest == noDigest {
		c.add(checkTodo, LevelError, "spec.artifact.digest", "write the sha256 of what is executed", "is still the digest of a draft")
	} else if !isDigest(c.m.Artifact.Digest) {
		c.add(checkSchema, LevelError, "spec.artifact.digest", "write sha256: and 64 hexadecimal digits", "%s is not a digest", quote(c.m.Artifact.Digest))
	}
	c.command()
	for i, cr := range c.m.Credentials {
		if strings.TrimSpace(cr.Purpose) == "" || isTodo(cr.Purpose) {
			c.add(checkTodo, LevelError, fmt.Sprintf("spec.credentials[%d].purpose", i), "write what the credential is for", "is still to be written")
		}
	}
}

// command warns of a program that may be started with any arguments.
func (c *checker) command() {
	if k := c.m.Artifact.Kind; len(c.m.Artifact.Command) == 0 && (k == grantcheck.ArtifactFile || k == grantcheck.ArtifactTree) {
		c.add(checkTodo, LevelWarning, "spec.artifact.command", "write what chaperone run starts, as in command: [weather, --serve]", "is missing: the program may be started with any arguments")
	}
}

func (c *checker) credentials() {
	names := map[string]bool{}
	for i, cr := range c.m.Credentials {
		field := fmt.Sprintf("spec.credentials[%d]", i)
		switch {
		case !authz.IsName(cr.Name):
			c.add(checkCredential, LevelError, field+".name", "use lower-case letters and digits, with dashes between them", "%s is not a name; a manifest holds no path and no secret", quote(cr.Name))
		case names[cr.Name]:
			c.add(checkCredential, LevelError, field+".name", "keep one of the two", "%s is listed twice", cr.Name)
		case !knownKind(cr.Kind):
			c.add(checkCredential, LevelError, field+".kind", "write one of bearer, header, query, cookie, basic, mtls, sigv4, oauth2, jwt, database", "%s is not a kind of credential", quote(string(cr.Kind)))
		case !slices.ContainsFunc(c.m.Permissions, func(p configs.Permission) bool { return p.Credential == cr.Name }):
			c.add(checkCredential, LevelWarning, field+".name", "remove it, or name it in a permission", "no permission uses credential %s", cr.Name)
		}
		names[cr.Name] = true
	}
	for i, p := range c.m.Permissions {
		if p.Credential != "" && !names[p.Credential] {
			c.add(checkCredential, LevelError, fmt.Sprintf("spec.permissions[%d].credential", i), "list it under spec.credentials, with its kind and purpose", "%s is not one of the manifest's credentials", quote(p.Credential))
		}
	}
}

// classes checks the classes of data, on which the risk depends, and that regions are defined.
func (c *checker) classes() {
	known := []authz.DataClass{authz.DataPublic, authz.DataInternal, authz.DataConfidential, authz.DataRestricted}
	for i, p := range c.m.Permissions {
		for j, class := range p.Data.Classes {
			if !slices.Contains(known, class) {
				c.add(checkPermission, LevelError, fmt.Sprintf("spec.permissions[%d].data.classes[%d]", i, j), "write one of public, internal, confidential, restricted", "%s is not a class of data", quote(string(class)))
			}
		}
		for j, region := range p.Data.Regions {
			if !slices.ContainsFunc(c.applying(), func(g Guardrail) bool { return len(g.Spec.Regions[region]) > 0 }) {
				c.add(checkPermission, LevelError, fmt.Sprintf("spec.permissions[%d].data.regions[%d]", i, j), "name one that a guardrail defines, or have it defined there", "no guardrail defines the region %s, so that nothing is in it", quote(region))
			}
		}
	}
}

func knownKind(k configs.CredentialKind) bool {
	switch k {
	case configs.CredentialBearer, configs.CredentialHeader, configs.CredentialQuery, configs.CredentialCookie, configs.CredentialBasic,
		configs.CredentialMTLS, configs.CredentialSigV4, configs.CredentialOAuth2, configs.CredentialJWT, configs.CredentialDatabase:
		return true
	}
	return false
}

// docs asks for a runbook from moderate risk up, and for the data flow and the privacy notice from high.
func (c *checker) docs() {
	rank := slices.Index(configs.Bands(), c.in.Band)
	var later []string
	for _, doc := range []struct {
		field, value, what string
		from               configs.Band
	}{
		{"spec.docs.runbook", c.m.Docs.Runbook, "a runbook", configs.BandModerate},
		{"spec.docs.dataFlow", c.m.Docs.DataFlow, "a description of the data flow", configs.BandHigh},
		{"spec.docs.privacy", c.m.Docs.Privacy, "a privacy notice", configs.BandHigh},
	} {
		switch needed := slices.Index(configs.Bands(), doc.from); {
		case doc.value != "":
			c.doc(doc.field, doc.value)
		case rank >= needed:
			c.add(checkDocs, LevelError, doc.field, "write the file beside the manifest, and its name or digest here", "%s is needed at risk %s", doc.what, c.in.Band)
		case c.in.Band == "":
			later = append(later, fmt.Sprintf("%s from risk %s up", doc.what, doc.from))
		}
	}
	if len(later) > 0 {
		c.add(checkDocs, LevelNote, "spec.docs", "", "needed is %s", strings.Join(later, ", "))
	}
}

// doc checks one document, by digest or as a file below the manifest's folder.
func (c *checker) doc(field, value string) {
	if strings.HasPrefix(value, "sha256:") {
		if !isDigest(value) {
			c.add(checkDocs, LevelError, field, "write sha256: and 64 hexadecimal digits", "%s is not a digest", quote(value))
		}
		return
	}
	if !fs.ValidPath(value) || value == "." || path.IsAbs(value) {
		c.add(checkDocs, LevelError, field, "write a path below the manifest's folder", "%s is not such a path", quote(value))
		return
	}
	if c.in.Dir == nil {
		return
	}
	switch info, err := fs.Stat(c.in.Dir, value); {
	case errors.Is(err, fs.ErrNotExist):
		c.add(checkDocs, LevelError, field, "write the file, or the digest of the document", "%s does not exist", quote(value))
	case err != nil:
		c.add(checkDocs, LevelError, field, "", "%s cannot be read", quote(value))
	case !info.Mode().IsRegular() || info.Size() == 0:
		c.add(checkDocs, LevelError, field, "name a file with the document", "%s is empty or not a file", quote(value))
	}
}

func (c *checker) secrets() {
	for _, s := range secrets(c.in.File.data) {
		c.addFinding(Finding{
			Check: checkSecret, Level: LevelError, Position: configs.Position{File: c.in.File.Path, Line: s.line, Column: s.column},
			Message: "looks like " + s.name, Fix: "revoke it, remove it, and name a credential instead",
		})
	}
}

// rules evaluates the conditions of guardrails.
func (c *checker) rules(ctx context.Context) {
	plugin := viewPlugin(c.in.File.Plugin, c.m)
	for _, g := range c.applying() {
		compiled, errs := g.Rules, []RuleError(nil)
		if compiled == nil {
			compiled, errs = CompileRules(g.Spec.Rules)
		}
		for _, e := range errs {
			c.addFinding(Finding{
				Check: checkGuardrail, Level: LevelError, Position: g.position(e.Path()), Bound: g.Name + "/rules",
				Message: fmt.Sprintf("guardrail %s: %s %s", g.Name, e.Path(), e.Message), Fix: "the guardrail has to be corrected before anything passes it",
			})
		}
		if len(errs) > 0 {
			continue
		}
		for _, v := range compiled.evaluate(ctx, plugin) {
			c.violated(&g, v)
		}
	}
}

func (c *checker) violated(g *Guardrail, v violation) {
	f := Finding{
		Check: checkRule, Level: LevelError, Field: "spec", Bound: g.Name + "/rules/" + v.rule.ID, Message: v.rule.Message,
		Fix: "make it so that " + clipText(v.rule.Require),
	}
	if v.permission >= 0 {
		f.Field = fmt.Sprintf("spec.permissions[%d]", v.permission)
		f.Permission = c.in.File.permission(v.permission)
	}
	if v.failure != "" {
		f.Message = fmt.Sprintf("condition %s cannot be evaluated, so that it does not hold: %s", v.rule.ID, v.failure)
	} else if e := c.exemption(func(e *grantcheck.Exemption) bool {
		return (e.GuardrailRule == "rules."+v.rule.ID || e.GuardrailRule == v.rule.ID) && (e.Permission == "" || e.Permission == f.Permission)
	}); e != nil {
		c.use(&f, e)
	}
	c.addFinding(f)
}

// controls reports the compensating controls of exemptions in force that the permissions do not
// state. The grant is bound to each of these exemptions, and would be refused.
func (c *checker) controls() {
	for i := range c.in.Exemptions {
		e := &c.in.Exemptions[i]
		if e.Plugin != c.in.File.Plugin || e.State(c.in.Now, c.in.Uses[e.Digest]) != grantcheck.ExemptionActive {
			continue
		}
		for _, p := range e.Unmet(c.m.Rules(), c.m.Limits) {
			c.add(checkExemption, LevelError, c.field(p.Field), "", "%s", p.Message)
		}
	}
}

// previous refuses a version that steps less than what it asks for demands.
func (c *checker) previous(ctx context.Context) {
	if c.in.Previous == nil {
		return
	}
	d, err := Diff(ctx, c.in.Previous, c.in.File, c.in.Now)
	switch {
	case err != nil && !c.out.Refused():
		c.add(checkVersion, LevelError, "spec.version", "", "cannot be compared with %s: %v", c.in.Previous.Spec.Version, err)
	case err == nil && d.Refused != "":
		c.add(checkVersion, LevelError, "spec.version", "", "%s", d.Refused)
	}
}

// applying returns the guardrails that apply to the plugin.
func (c *checker) applying() (out []Guardrail) {
	for _, g := range c.in.Guardrails {
		if g.Spec.AppliesTo(c.in.File.Plugin) {
			out = append(out, g)
		}
	}
	return out
}

// exemption returns an exemption of the plugin that is in force and fits. One that fits and has
// ended is reported.
func (c *checker) exemption(fits func(*grantcheck.Exemption) bool) *grantcheck.Exemption {
	for i := range c.in.Exemptions {
		e := &c.in.Exemptions[i]
		if e.Plugin != c.in.File.Plugin || !fits(e) {
			continue
		}
		if state := e.State(c.in.Now, c.in.Uses[e.Digest]); state != grantcheck.ExemptionActive {
			c.add(checkExemption, LevelWarning, "", "ask for another one, or do without", "exemption %s would help, and it is %s", e.Name, state)
			continue
		}
		return e
	}
	return nil
}

// use turns a finding into a note of an exemption.
func (c *checker) use(f *Finding, e *grantcheck.Exemption) {
	f.Level, f.Exemption, f.Fix = LevelNote, e.Name, ""
	f.Message += fmt.Sprintf(" (exempted by %s until %s, ticket %s)", e.Name, e.NotAfter.UTC().Format(time.RFC3339), quote(e.Ticket))
	c.out.Exemptions = append(c.out.Exemptions, e.Name)
}
