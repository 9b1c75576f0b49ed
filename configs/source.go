package configs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/chaperone-proxy/chaperone/authz"
)

// maxFolder bounds how many files of one folder are read.
const maxFolder = 10000

// loader reads files, each one once, and collects what is wrong.
type loader struct {
	now      time.Time
	read     map[string][]*source // by real path
	order    []*source            // in the order of reading
	files    []File
	seen     map[string]string // see Config
	errs     Errors
	warnings Errors
	expired  Errors // grants that have ended

	wants func(root *node) bool // the documents to decode; nil for all

	stdin     io.Reader // for the file "-"; nil: that is a file like any other
	stdinRead []byte    // the part that was read

	contents map[string][]byte // see CheckOptions
	alone    bool              // one document is read, and no file that it names

	trust      *trusted   // of a Sidecar with spec.trust
	checking   bool       // signed files that no Sidecar names are decoded without being verified
	unverified []string   // these files
	signing    *signature // of the payload that is being decoded
}

func newLoader(now time.Time) *loader {
	return &loader{now: now, read: make(map[string][]*source), seen: make(map[string]string)}
}

func (l *loader) names() []string {
	names := make([]string, len(l.files))
	for i, f := range l.files {
		names[i] = f.Path
	}
	return names
}

// source is one document and where it was read.
type source struct {
	file string
	root *node
	kind Kind
	bad  []string // the fields that are wrong

	signed *signature // nil: the document is not from a signed file

	object    object // the one of these that is set, by kind
	sidecar   *Object[Sidecar]
	grant     *Object[GrantSpec]
	guardrail *Object[GuardrailSpec]
	test      *Object[PluginTest]
	manifest  *Object[PluginManifest]
	exemption *Object[GrantExemption]
	rubric    *Object[RiskRubric]
	trust     *Object[TrustRoot]
	checklist *Object[ComplianceChecklist]
}

// origin names the document for authz.
func (s *source) origin() authz.Origin {
	return authz.Origin(placeOf(s.file, s.root))
}

// placeOf returns file:line:column of a node, or the file alone for a signed one.
func placeOf(file string, n *node) string {
	if n.line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d:%d", file, n.line, n.column)
}

// reporter returns a reporter of problems of the document, which adds to list
// those that do not follow from others.
func (s *source) reporter(list *Errors) reporter {
	return func(path, format string, args ...any) {
		if s.faulty(path) {
			return
		}
		n := s.root.find(path)
		*list = append(*list, Error{s.file, n.line, n.column, path, fmt.Sprintf(format, args...)})
	}
}

// faulty reports whether a field, one below it or the one it is part of could
// not be read, so that its other errors follow from that.
func (s *source) faulty(path string) bool {
	return slices.ContainsFunc(s.bad, func(bad string) bool {
		below := strings.HasPrefix(path, bad) && (len(path) == len(bad) || path[len(bad)] == '.' || path[len(bad)] == '[')
		above := strings.HasPrefix(bad, path) && strings.LastIndexAny(bad, ".[") == len(path)
		return below || above
	})
}

// beside returns the path of a file that the document names.
func (s *source) beside(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(s.file), path)
}

// named reads a file that the caller named.
func (l *loader) named(path string) []*source {
	documents, err := l.file(path)
	if err != nil {
		l.errs = append(l.errs, Error{File: path, Message: err.Error()})
	}
	return documents
}

// reference reads a file or folder that a Sidecar names. Only grants may be a
// folder that holds nothing: guardrails that vanish would widen.
func (l *loader) reference(s *source, field, path string, mayBeEmpty bool) []*source {
	report := s.reporter(&l.errs)
	if path == "" {
		report(field, "is empty; write a file or a folder, relative to this file")
		return nil
	}
	full := s.beside(path)
	files, err := l.folder(full)
	if err != nil {
		report(field, "%s %v%s", full, err, advice(err))
		return nil
	}
	if len(files) == 0 && !mayBeEmpty {
		report(field, "%s holds no *.yaml, *.yml or *.json; add one or remove the folder", full)
	}
	var documents []*source
	for _, file := range files {
		more, err := l.file(file)
		if err != nil {
			report(field, "%s %v", file, err)
		}
		documents = append(documents, more...)
	}
	return documents
}

// folder returns path, or when it is a folder the files in it that hold
// documents, in the order of their names. Hidden ones are skipped, so that the
// ..data of a mounted ConfigMap is not read twice.
func (l *loader) folder(path string) ([]string, error) {
	l.stat(path)
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	var files []string
	for _, e := range entries {
		name := filepath.Join(path, e.Name())
		if !holdsDocuments(e.Name()) {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			continue
		}
		files = append(files, name)
	}
	if len(files) > maxFolder {
		return nil, fmt.Errorf("holds more than %d files; use several folders", maxFolder)
	}
	return files, nil
}

// folders is folder, and with recursive also looks into the folders below.
func (l *loader) folders(path string, recursive bool) ([]string, error) {
	if l.stdin != nil && path == stdinName {
		return []string{path}, nil
	}
	files, err := l.folder(path)
	if err != nil || !recursive {
		return files, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return files, nil //nolint:nilerr // it is a file
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") { // links to folders are not followed
			continue
		}
		more, err := l.folders(filepath.Join(path, e.Name()), true)
		if err != nil {
			return nil, err
		}
		if files = append(files, more...); len(files) > maxFolder {
			return nil, fmt.Errorf("holds more than %d files; check several folders", maxFolder)
		}
	}
	return files, nil
}

// stdinName stands for standard input.
const stdinName = "-"

// holdsDocuments reports whether a file of a folder is one to read.
func holdsDocuments(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// file reads the documents of a file, or nothing when it has been read. Its
// error means that the file cannot be read at all.
func (l *loader) file(path string) ([]*source, error) {
	l.stat(path)
	identity, err := l.identity(path)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if _, ok := l.read[identity]; ok {
		return nil, nil
	}
	l.read[identity] = nil
	data, err := l.bytes(path, true)
	if err != nil {
		return nil, err
	}
	decode := l.decode
	if IsSigned(path) {
		decode = l.signed
	}
	documents := decode(path, data)
	l.read[identity] = documents
	return documents, nil
}

// decode reads the documents of a file's content.
func (l *loader) decode(path string, data []byte) (documents []*source) {
	parse := parseYAML
	if filepath.Ext(path) == ".json" || path == stdinName && bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		parse = parseJSON
	}
	roots, errs := parse(path, data)
	l.errs = append(l.errs, errs...)
	if len(roots)+len(errs) == 0 {
		l.errs = append(l.errs, Error{File: path, Message: "holds no document; write one or remove the file"})
	}
	for _, root := range roots {
		if l.wants != nil && !l.wants(root) {
			continue
		}
		if s := l.document(path, root); s != nil {
			documents = append(documents, s)
		}
	}
	l.order = append(l.order, documents...)
	return documents
}

// identity returns what a file is known by, however it is named.
func (l *loader) identity(path string) (string, error) {
	if l.stdin != nil && path == stdinName {
		return path, nil
	}
	return realPath(path)
}

func realPath(path string) (string, error) {
	identity, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(identity)
}

// stat notes the state of a path for the watch, before it is read: a change
// in between then counts as one.
func (l *loader) stat(path string) {
	full, err := filepath.Abs(path)
	if err != nil {
		return // and the path cannot be read either
	}
	if _, ok := l.seen[full]; !ok {
		l.seen[full] = observe(full)
	}
}

// bytes reads a file of bounded size. Its error reads well after the file's name.
func (l *loader) bytes(path string, digest bool) ([]byte, error) {
	l.stat(path)
	data, err := l.content(path)
	if err != nil {
		return nil, err
	}
	if digest && !slices.ContainsFunc(l.files, func(f File) bool { return f.Path == path }) {
		sum := sha256.Sum256(data)
		l.files = append(l.files, File{path, hex.EncodeToString(sum[:])})
	}
	return data, nil
}

// content reads a file, or standard input once.
func (l *loader) content(path string) ([]byte, error) {
	if l.stdin == nil || path != stdinName {
		if identity, err := realPath(path); err == nil && l.contents[identity] != nil {
			return l.contents[identity], nil
		}
		return readFile(path)
	}
	if l.stdinRead != nil {
		return l.stdinRead, nil
	}
	data, err := io.ReadAll(io.LimitReader(l.stdin, maxFileSize+1))
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if len(data) > maxFileSize {
		return nil, errors.New("is larger than 1MiB; use several files")
	}
	l.stdinRead = append([]byte{}, data...)
	return l.stdinRead, nil
}

func readFile(path string) ([]byte, error) {
	// Opening a named pipe would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if info.IsDir() {
		return nil, errors.New("is a folder; name a file")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	defer func() { _ = f.Close() }() // opened for reading only
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, errors.New(plain(err))
	}
	if len(data) > maxFileSize {
		return nil, errors.New("is larger than 1MiB; use several files")
	}
	return data, nil
}

// plain returns the cause of an error without the operation and the path.
func plain(err error) string {
	var path *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notThere
	case errors.Is(err, fs.ErrPermission):
		return "may not be read by this user"
	case errors.As(err, &path):
		return "cannot be read: " + path.Err.Error()
	}
	return "cannot be read: " + strings.TrimPrefix(err.Error(), "EvalSymlinks: ")
}

// advice is how to name a missing file.
func advice(err error) string {
	if err.Error() == notThere {
		return "; write a path relative to this file, or a whole one"
	}
	return ""
}

const notThere = "does not exist"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// document decodes one document. It returns nil when it is of no known kind.
func (l *loader) document(file string, root *node) *source {
	d := &decoder{file: file}
	defer func() { l.errs = append(l.errs, d.errs...) }()
	if root.kind != mappingKind {
		d.is(root, mappingKind, reflect.ValueOf(Object[Sidecar]{}), "")
		return nil
	}
	s := &source{file: file, root: root, signed: l.signing}
	if v := root.child("apiVersion"); v != nil && v.kind == textKind && v.text != APIVersion {
		d.report(v.line, v.column, "apiVersion", "%q is not known; write %s", clip(v.text), APIVersion)
	}
	kind := root.child("kind")
	if kind == nil {
		d.report(root.line, root.column, "kind", "is missing; write %s", kindsInWords())
		return nil
	}
	s.kind = Kind(kind.text)
	if s.object = s.allocate(); s.object == nil {
		d.report(kind.line, kind.column, "kind", "%q is not known; write %s", clip(kind.text), kindsInWords())
		return nil
	}
	d.value(root, reflect.ValueOf(s.object).Elem(), "")
	s.name()
	shellPaths(root, "", d)
	decoded := len(d.errs)
	for _, e := range d.errs {
		s.bad = append(s.bad, e.Field)
	}
	l.finish(s, &d.errs)
	for _, e := range d.errs[decoded:] {
		s.bad = append(s.bad, e.Field)
	}
	return s
}

// object is an [Object] of any kind.
type object interface{ metadata() Metadata }

func (o *Object[S]) metadata() Metadata { return o.Metadata }

// allocate makes the object to decode a document of the kind into, with the defaults
// that are filled in before, and returns nil for a kind that is not known.
func (s *source) allocate() object {
	switch s.kind {
	case KindSidecar:
		s.sidecar = &Object[Sidecar]{}
		return s.sidecar
	case KindGrant:
		s.grant = &Object[GrantSpec]{}
		return s.grant
	case KindGuardrail:
		s.guardrail = &Object[GuardrailSpec]{}
		return s.guardrail
	case KindTest:
		s.test = &Object[PluginTest]{}
		return s.test
	case KindManifest:
		s.manifest = &Object[PluginManifest]{}
		return s.manifest
	case KindExemption:
		s.exemption = &Object[GrantExemption]{}
		return s.exemption
	case KindRubric:
		s.rubric = &Object[RiskRubric]{Spec: DefaultRubric()}
		return s.rubric
	case KindTrust:
		s.trust = &Object[TrustRoot]{}
		return s.trust
	case KindChecklist:
		s.checklist = &Object[ComplianceChecklist]{}
		return s.checklist
	}
	return nil
}

// name gives the specs for authz their name and origin, and their rules what is made
// from them.
func (s *source) name() {
	switch {
	case s.grant != nil:
		s.grant.Spec.Name, s.grant.Spec.Origin = s.grant.Metadata.Name, s.origin()
		for i := range s.grant.Spec.Rules {
			s.grant.Spec.Rules[i].Matcher = Matcher(&s.grant.Spec.Rules[i])
		}
	case s.guardrail != nil:
		s.guardrail.Spec.Name, s.guardrail.Spec.Origin = s.guardrail.Metadata.Name, s.origin()
	case s.manifest != nil:
		for i := range s.manifest.Spec.Permissions {
			s.manifest.Spec.Permissions[i].Matcher = Matcher(&s.manifest.Spec.Permissions[i].Rule)
		}
	}
}

// kindsInWords lists the kinds for a message.
func kindsInWords() string {
	names := make([]string, 0, len(Kinds()))
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// finish does to a decoded document what does not depend on others.
func (l *loader) finish(s *source, errs *Errors) {
	report := s.reporter(errs)
	switch {
	case s.grant != nil:
		notYetGrant(s.grant.Spec.Grant, report)
		l.expiry(s)
		for i, socket := range s.grant.Spec.Sockets {
			if doubt := socketDoubt(socket); doubt != "" {
				s.reporter(&l.warnings)(at("spec.sockets", i), "%s", doubt)
			}
		}
		if !l.alone {
			signedOnly(s.grant.Spec, s.signed != nil, report)
			l.grantFiles(s, report)
		}
		for i := range s.grant.Spec.Rules {
			finishRule(&s.grant.Spec.Rules[i], at("spec.rules", i), report, s.reporter(&l.warnings))
		}
	case s.test != nil:
		if name := s.test.Metadata.Name; name != "" && !authz.IsName(name) {
			report("metadata.name", notAName, clip(name))
		}
		s.test.Spec.validate(report)
	case s.guardrail != nil:
		l.uniqueGuardrail(s, report)
		for i := range s.guardrail.Spec.Never {
			asciiHosts(s.guardrail.Spec.Never[i].Hosts, at("spec.never", i)+".hosts", report)
		}
		for name, places := range s.guardrail.Spec.Regions {
			asciiPlaces(places, "spec.regions."+name, report)
		}
		s.guardrail.Spec.validate(report, s.reporter(&l.warnings))
	default:
		l.finishGovernance(s, report)
	}
}

// finishGovernance is finish for the kinds that only governance uses.
func (l *loader) finishGovernance(s *source, report reporter) {
	name := s.object.metadata().Name
	if s.exemption != nil {
		if name != "" {
			word(report, "metadata.name", name)
		}
	} else if name != "" && !authz.IsName(name) && s.sidecar == nil {
		report("metadata.name", notAName, clip(name))
	}
	switch {
	case s.manifest != nil:
		for i := range s.manifest.Spec.Permissions {
			finishRule(&s.manifest.Spec.Permissions[i].Rule, at("spec.permissions", i), report, s.reporter(&l.warnings))
		}
		if !l.alone { // chaperone plugin check reports the same as findings
			s.manifest.Spec.validate(s, report)
		}
	case s.exemption != nil:
		s.exemption.Spec.validate(report)
	case s.rubric != nil:
		s.rubric.Spec.validate(report)
	case s.trust != nil:
		s.trust.Spec.validate(name, report)
	case s.checklist != nil:
		s.checklist.Spec.validate(report)
	}
}

// finishRule does to a rule of a grant, or a permission of a manifest, what does not depend
// on others.
func finishRule(r *authz.Rule, path string, report, warn reporter) {
	asciiHosts(r.To.Hosts, path+".to.hosts", report)
	contentCheck{*r, path, report, warn}.check()
	tunnelDoubt(r.To, path+".to.ports", warn)
	for j, text := range r.Paths {
		if doubt := authz.PathWarning(text); doubt != "" {
			warn(at(path+".paths", j), "%s", doubt)
		}
	}
}

// tunnelDoubt warns of a rule of any tcp to a port at which servers speak HTTP: it
// grants every method and path there, and nothing looks into what it carries.
func tunnelDoubt(to authz.To, path string, warn reporter) {
	if to.Scheme != authz.SchemeTCP {
		return
	}
	for i, port := range to.Ports {
		for _, web := range []authz.Scheme{authz.SchemeHTTPS, authz.SchemeHTTP} {
			if port == web.DefaultPort() {
				warn(at(path, i), "%d is the port of %s, and scheme: tcp grants every request there without looking at it; write scheme: %s with methods and paths, unless something else is spoken there", port, web, web)
			}
		}
	}
}

// uniqueGuardrail reports an invalid name, or one that another guardrail has.
func (l *loader) uniqueGuardrail(s *source, report reporter) {
	name := s.guardrail.Metadata.Name
	if name != "" && !authz.IsName(name) {
		report("metadata.name", notAName, clip(name))
	}
	for _, documents := range l.read {
		for _, other := range documents {
			if (other.signed == nil) != (s.signed == nil) {
				continue // the text of the signed one; see withoutUnsigned
			}
			if other.guardrail != nil && other.guardrail.Metadata.Name == name && name != "" {
				report("metadata.name", "%q is the name of the guardrail at %s too; guardrails have names of their own", name, other.origin())
			}
		}
	}
}

// asciiHosts replaces the names in hosts that are written in other scripts by
// the ASCII form that goes over the wire (IDNA 2008 with the mapping of UTS
// #46, as browsers look names up).
func asciiHosts(hosts []string, path string, report reporter) {
	for i, host := range hosts {
		ascii, err := asciiHost(host)
		if err != nil {
			report(at(path, i), "%v", err)
			continue
		}
		hosts[i] = ascii
	}
}

// asciiPlaces is asciiHosts for the hosts among the places of a region.
func asciiPlaces(places []authz.Place, path string, report reporter) {
	for i, place := range places {
		host := []string{string(place)}
		if !strings.Contains(host[0], "/") {
			asciiHosts(host, path, func(_, format string, args ...any) { report(at(path, i), format, args...) })
		}
		places[i] = authz.Place(host[0])
	}
}

func asciiHost(host string) (string, error) {
	name := strings.TrimLeft(host, "*.")
	if isASCII(name) && !strings.Contains(strings.ToLower(name), "xn--") {
		return host, nil
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err == nil {
		_, err = idna.Lookup.ToUnicode(ascii)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not a host: %s", clip(host), strings.TrimPrefix(err.Error(), "idna: "))
	}
	if _, err := netip.ParseAddr(ascii); err == nil {
		return "", fmt.Errorf("%q is an address in disguise; write %s", clip(host), ascii)
	}
	if isASCII(name) {
		return host, nil // authz checks whether it is canonical
	}
	return strings.TrimSuffix(host, name) + ascii, nil
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r > 0x7f }) < 0
}

// staticHosts gives the names of dns.hosts the form in which they are looked
// up.
func (l *loader) staticHosts(s *source) {
	report := s.reporter(&l.errs)
	hosts := s.sidecar.Spec.DNS.Hosts
	canonical := make(map[string][]netip.Addr, len(hosts))
	for name, addresses := range hosts {
		path := "spec.dns.hosts." + name
		ascii, err := asciiHost(name)
		if err != nil {
			report(path, "%v", err)
			continue
		}
		d, err := authz.NewDestination(authz.SchemeTLS, ascii, "")
		switch {
		case err != nil:
			report(path, "%v", err)
		case d.Host() != ascii || d.Address().IsValid():
			report(path, "is not a name in its canonical form; write it in lower case without a trailing dot or a port")
		case len(addresses) == 0:
			report(path, "has no addresses; write them, as in [192.0.2.7]")
		}
		canonical[ascii] = addresses
	}
	if len(hosts) > 0 {
		s.sidecar.Spec.DNS.Hosts = canonical
	}
}

// certificates reads a PEM file that holds certificates and nothing else, and
// returns its content.
func (l *loader) certificates(s *source, field, path string, report reporter) string {
	if path == "" {
		return ""
	}
	full := s.beside(path)
	data, err := l.bytes(full, true)
	if err == nil {
		err = checkCertificates(data)
	}
	if err != nil {
		report(field, "%s %v%s", full, err, advice(err))
		return ""
	}
	return string(data)
}

func checkCertificates(data []byte) error {
	n := 0
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("holds a %s; it may hold certificates only", clip(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("holds a certificate that cannot be read: %s", strings.TrimPrefix(err.Error(), "x509: "))
		}
		n, data = n+1, rest
	}
	if n == 0 {
		return errors.New("holds no certificate; write PEM, from -----BEGIN CERTIFICATE-----")
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return errors.New("holds a block that is not whole PEM")
	}
	return nil
}

func loopbackURL(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
