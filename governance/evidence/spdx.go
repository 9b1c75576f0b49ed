package evidence

import (
	"fmt"
	"strings"
)

// The parts of SPDX 2.2.1 (ISO/IEC 5962) and 2.3 in JSON that are read.
type (
	spdxDocument struct {
		Version  string `json:"spdxVersion"`
		ID       string `json:"SPDXID"`
		Creation struct {
			Created  string   `json:"created"`
			Creators []string `json:"creators"`
		} `json:"creationInfo"`
		Describes     []string      `json:"documentDescribes"`
		Packages      []spdxPackage `json:"packages"`
		Relationships []struct {
			From string `json:"spdxElementId"`
			To   string `json:"relatedSpdxElement"`
			Type string `json:"relationshipType"`
		} `json:"relationships"`
	}
	spdxPackage struct {
		ID        string `json:"SPDXID"`
		Name      string `json:"name"`
		Version   string `json:"versionInfo"`
		Concluded string `json:"licenseConcluded"`
		Declared  string `json:"licenseDeclared"`
		Checksums []struct {
			Algorithm string `json:"algorithm"`
			Value     string `json:"checksumValue"`
		} `json:"checksums"`
		Refs []struct {
			Type    string `json:"referenceType"`
			Locator string `json:"referenceLocator"`
		} `json:"externalRefs"`
	}
)

func readSPDX(data []byte, source Source, o Options) ([]Normalised, error) {
	var doc spdxDocument
	if err := decode(data, &doc); err != nil {
		return nil, err
	}
	if doc.Version != "SPDX-2.2" && doc.Version != "SPDX-2.3" {
		return nil, fmt.Errorf("spdxVersion is %s; SPDX-2.2 and SPDX-2.3 are supported", quote(doc.Version))
	}
	var r reader
	source.Format = strings.ToLower(doc.Version)
	source.observed(r.time("creationInfo.created", doc.Creation.Created))
	for _, c := range doc.Creation.Creators {
		if name, found := strings.CutPrefix(c, "Tool:"); found {
			source.Tools = append(source.Tools, Tool{Name: r.name("creationInfo.creators", name)})
		}
	}
	source.Tools = sortTools(source.Tools)
	// The packages that the document describes are the artifact; the others are its parts.
	described := map[string]bool{}
	for _, id := range doc.Describes {
		described[id] = true
	}
	for _, rel := range doc.Relationships {
		if rel.Type == "DESCRIBES" && rel.From == doc.ID {
			described[rel.To] = true
		}
	}
	seen := map[string]bool{}
	var components []Component
	var artifacts []string
	for i := range doc.Packages {
		p := &doc.Packages[i]
		c := p.component(&r)
		if p.ID == "" || seen[p.ID] {
			r.fail("SPDXID %s is missing, or that of two packages", quote(p.ID))
		}
		if r.err != nil {
			return nil, fmt.Errorf("packages[%d]: %w", i, r.err)
		}
		seen[p.ID] = true
		if described[p.ID] && c.Digest != "" {
			artifacts = append(artifacts, c.Digest)
		}
		components = append(components, c)
	}
	if r.err != nil {
		return nil, r.err
	}
	out, err := sbomPredicate(o.head(), source, components, artifacts)
	if err != nil {
		return nil, err
	}
	return []Normalised{out}, nil
}

func (p *spdxPackage) component(r *reader) Component {
	c := Component{Name: r.required("name", p.Name), Version: r.name("versionInfo", p.Version)}
	for _, ref := range p.Refs {
		if ref.Type == "purl" {
			c.PURL = r.name("purl", ref.Locator)
		}
	}
	for _, sum := range p.Checksums {
		if digest := r.sha256(sum.Algorithm, sum.Value); digest != "" {
			c.Digest = digest
		}
	}
	for _, license := range []string{p.Concluded, p.Declared} {
		if license != "NOASSERTION" && license != "NONE" {
			c.Licenses = append(c.Licenses, text(license))
		}
	}
	c.Licenses = sorted(c.Licenses)
	return c
}
