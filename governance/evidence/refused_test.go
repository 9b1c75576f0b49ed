package evidence

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// mutation makes a bad report out of a good one. It returns nil if it does not apply.
type mutation struct {
	name string
	make func(name string, data []byte) []byte
}

func isXML(name string) bool { return strings.HasSuffix(name, ".xml") }

func isLines(name string) bool { return strings.HasSuffix(name, "gotest.json") }

func mutations() []mutation {
	cut := func(percent int) func(string, []byte) []byte {
		return func(_ string, data []byte) []byte {
			data = bytes.TrimSpace(data)
			return data[:len(data)*percent/100]
		}
	}
	json := func(change func([]byte) []byte) func(string, []byte) []byte {
		return func(name string, data []byte) []byte {
			if isXML(name) {
				return nil
			}
			return change(bytes.TrimSpace(data))
		}
	}
	insert := func(s string) func([]byte) []byte { // after the first brace
		return func(data []byte) []byte { return bytes.Replace(data, []byte("{"), []byte("{"+s), 1) }
	}
	return []mutation{
		{"empty", func(string, []byte) []byte { return []byte{} }},
		{"cut at a quarter", cut(25)},
		{"cut at half", cut(50)},
		{"cut at three quarters", cut(75)},
		{"cut at the end", cut(99)},
		{"zero bytes", func(_ string, d []byte) []byte { return append(bytes.Clone(d[:len(d)/2]), make([]byte, 64)...) }},
		{"UTF-16", func(_ string, d []byte) []byte {
			out := []byte{0xff, 0xfe}
			for _, c := range d {
				out = append(out, c, 0)
			}
			return out
		}},
		{"not UTF-8", json(func(d []byte) []byte { return bytes.Replace(d, []byte(`":"`), []byte("\":\"\xff"), 1) })},
		{"key twice", json(insert(`"x":1,"x":2,`))},
		{"key in two cases", json(insert(`"x":1,"X":2,`))},
		{"key escaped twice", json(insert(`"x":1,"\u0078":2,`))},
		{"deep", json(insert(`"deep":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + ","))},
		{"many containers", json(insert(`"many":[` + strings.Repeat("{},", maxContainers) + `{}],`))},
		{"large", func(_ string, d []byte) []byte {
			return append(bytes.Clone(d), bytes.Repeat([]byte(" "), MaxSource)...)
		}},
		{"text behind", func(_ string, d []byte) []byte { return append(bytes.Clone(d), "x"...) }},
		{"second document", func(_ string, d []byte) []byte { return append(bytes.Clone(d), d...) }},
		{"list", json(func(d []byte) []byte { return append(append([]byte("["), d...), ']') })},
		{"comment", json(func(d []byte) []byte { return append([]byte("/* */"), d...) })},
		{"bare NaN", json(insert(`"n":NaN,`))},
		{"two formats", json(insert(`"bomFormat":"CycloneDX","runs":[],`))},
		{"other runs", json(insert(`"runs":[],"spdxVersion":"SPDX-2.3",`))},
		{"text in front", func(_ string, d []byte) []byte { return append([]byte("x"), d...) }},
	}
}

// applies excludes mutations that leave a good report of its format.
func (m mutation) applies(name string) bool {
	switch {
	case isLines(name): // each line is a document, unknown keys are ignored, and packages may run twice
		return m.name != "second document" && m.name != "two formats" && m.name != "other runs" && m.name != "not UTF-8"
	}
	return true
}

func TestMutationsRefused(t *testing.T) {
	refused, all := 0, samples(t)
	for _, name := range sortedNames(all) {
		for _, m := range mutations() {
			bad := m.make(name, all[name])
			if bad == nil || bytes.Equal(bad, bytes.TrimSpace(all[name])) || !m.applies(name) {
				continue
			}
			found, err := Normalise(bad, Options{IssuedAt: made})
			if err == nil {
				t.Errorf("%s, %s: was read as %s", name, m.name, found[0].Summary)
				continue
			}
			if text := err.Error(); len(text) > 600 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("%s, %s: error has control characters or %d bytes: %.700q", name, m.name, len(text), text)
			}
			refused++
		}
	}
	t.Logf("%d bad reports refused, 0 accepted", refused)
	if refused < 200 {
		t.Errorf("only %d bad reports were made", refused)
	}
}

func sarifWith(run string) string {
	return `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"s","rules":[{"id":"a"}]}},` + run + `}]}`
}

func result(fields string) string {
	return sarifWith(`"results":[{"message":{"text":"m"},` + fields + `}]`)
}

func cdxWith(fields string) string {
	return `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a","bom-ref":"r"}],` + fields + `}`
}

func vexWith(statement string) string {
	return `{"@context":"https://openvex.dev/ns/v0.2.0","author":"a","statements":[` + statement + `]}`
}

func inTotoWith(predicateType, predicate string) string {
	return `{"_type":"` + typeStatement + `","subject":[{"digest":{"sha256":"` + strings.Repeat("a", 64) + `"}}],"predicateType":"` + predicateType + `","predicate":` + predicate + `}`
}

func TestReportsRefused(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"sarif version":            {`{"version":"2.0.0","runs":[]}`, "2.1.0 is supported"},
		"sarif without run":        {`{"version":"2.1.0","runs":[]}`, "no tool ran"},
		"sarif without results":    {sarifWith(`"results":null`), "did not scan"},
		"sarif results elsewhere":  {sarifWith(`"results":[],"externalPropertyFileReferences":{"results":[{"location":{"uri":"x"}}]}`), "in another file"},
		"sarif scan failed":        {sarifWith(`"results":[],"invocations":[{"executionSuccessful":false}]`), "the scan failed"},
		"sarif no tool":            {`{"version":"2.1.0","runs":[{"results":[]}]}`, "driver.name is missing"},
		"sarif tool name":          {`{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"\u001b[2J"}},"results":[]}]}`, "without control characters"},
		"sarif kind":               {result(`"kind":"good"`), "kind"},
		"sarif level":              {result(`"level":"fine"`), "level"},
		"sarif baseline":           {result(`"baselineState":"gone"`), "baselineState"},
		"sarif rule index":         {result(`"ruleIndex":7`), "ruleIndex is 7"},
		"sarif rule of another":    {result(`"ruleIndex":0,"ruleId":"b"`), "ruleIndex is that of"},
		"sarif extension index":    {result(`"rule":{"index":0,"toolComponent":{"index":3}}`), "toolComponent.index is 3"},
		"sarif severity NaN":       {result(`"properties":{"security-severity":"NaN"}`), "between 0 and 10"},
		"sarif severity 11":        {result(`"properties":{"security-severity":"11"}`), "between 0 and 10"},
		"sarif severity negative":  {result(`"properties":{"security-severity":-1}`), "between 0 and 10"},
		"sarif severity word":      {result(`"properties":{"security-severity":"high"}`), "not a number"},
		"sarif epss":               {result(`"properties":{"epss":"50"}`), "probability"},
		"sarif kev":                {result(`"properties":{"kev":"maybe"}`), "neither true nor false"},
		"sarif rule id":            {result(`"ruleId":"a\u202eb"`), "without control characters"},
		"sarif long rule id":       {result(`"ruleId":"` + strings.Repeat("a", maxName+1) + `"`), "at most 512"},
		"sarif end time":           {sarifWith(`"results":[],"invocations":[{"endTimeUtc":"yesterday"}]`), "not a time"},
		"sarif old time":           {sarifWith(`"results":[],"invocations":[{"endTimeUtc":"0001-01-01T00:00:00Z"}]`), "not a time"},
		"sarif future":             {sarifWith(`"results":[],"invocations":[{"endTimeUtc":"2026-12-01T12:06:00Z"}]`), "in the future"},
		"sarif many":               {sarifWith(`"results":[` + strings.Repeat(`{},`, maxFindings) + `{}]`), "at most 10000"},
		"cyclonedx 1.3":            {`{"bomFormat":"CycloneDX","specVersion":"1.3"}`, "1.4 to 1.7"},
		"cyclonedx 1.8":            {`{"bomFormat":"CycloneDX","specVersion":"1.8"}`, "1.4 to 1.7"},
		"cyclonedx other":          {`{"bomFormat":"cyclonedx","specVersion":"1.6"}`, "are supported"},
		"cyclonedx empty":          {`{"bomFormat":"CycloneDX","specVersion":"1.6"}`, "no component"},
		"cyclonedx name":           {`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"version":"1"}]}`, "component name is missing"},
		"cyclonedx ref twice":      {`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a","bom-ref":"r"},{"name":"b","bom-ref":"r"}]}`, "two components"},
		"cyclonedx purl":           {`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a","purl":"pkg:a/b\n@1"}]}`, "without control characters"},
		"cyclonedx hash":           {`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a","hashes":[{"alg":"SHA-256","content":"00"}]}]}`, "64 hexadecimal"},
		"cyclonedx tools":          {cdxWith(`"metadata":{"tools":7}`), "metadata.tools"},
		"cyclonedx time":           {cdxWith(`"metadata":{"timestamp":"7"}`), "not a time"},
		"cyclonedx id":             {cdxWith(`"vulnerabilities":[{}]`), "id is missing"},
		"cyclonedx score":          {cdxWith(`"vulnerabilities":[{"id":"C","ratings":[{"method":"CVSSv31","score":99}]}]`), "between 0 and 10"},
		"cyclonedx epss":           {cdxWith(`"vulnerabilities":[{"id":"C","ratings":[{"source":{"name":"EPSS"},"score":2}]}]`), "probability"},
		"cyclonedx affects":        {cdxWith(`"vulnerabilities":[{"id":"C","affects":[{"ref":"\u0000"}]}]`), "affects.ref"},
		"spdx 3":                   {`{"spdxVersion":"SPDX-3.0","packages":[]}`, "SPDX-2.2 and SPDX-2.3"},
		"spdx empty":               {`{"spdxVersion":"SPDX-2.3","packages":[]}`, "no component"},
		"spdx id twice":            {`{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"a","name":"a"},{"SPDXID":"a","name":"b"}]}`, "two packages"},
		"spdx id missing":          {`{"spdxVersion":"SPDX-2.3","packages":[{"name":"a"}]}`, "is missing"},
		"spdx name":                {`{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"a"}]}`, "name is missing"},
		"spdx checksum":            {`{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"a","name":"a","checksums":[{"algorithm":"SHA256","checksumValue":"zz"}]}]}`, "64 hexadecimal"},
		"spdx time":                {`{"spdxVersion":"SPDX-2.3","creationInfo":{"created":"now"},"packages":[{"SPDXID":"a","name":"a"}]}`, "not a time"},
		"vex version":              {`{"@context":"https://openvex.dev/ns/v9","author":"a","statements":[{}]}`, "are supported"},
		"vex other context":        {`{"@context":"https://evil.example/openvex","author":"a","statements":[{}]}`, "are supported"},
		"vex author":               {`{"@context":"https://openvex.dev/ns","statements":[{"vulnerability":"C","products":["p"],"status":"fixed"}]}`, "author is missing"},
		"vex empty":                {vexWith(``), "0 statements"},
		"vex status":               {vexWith(`{"vulnerability":"C","products":["p"],"status":"fine"}`), "status"},
		"vex unjustified":          {vexWith(`{"vulnerability":"C","products":["p"],"status":"not_affected"}`), "needs a justification"},
		"vex justification":        {vexWith(`{"vulnerability":"C","products":["p"],"status":"not_affected","justification":"trust me"}`), "justification"},
		"vex no action":            {vexWith(`{"vulnerability":"C","products":["p"],"status":"affected"}`), "action_statement"},
		"vex no product":           {vexWith(`{"vulnerability":"C","status":"fixed"}`), "products are missing"},
		"vex product nameless":     {vexWith(`{"vulnerability":"C","products":[{}],"status":"fixed"}`), "neither @id"},
		"vex product hash":         {vexWith(`{"vulnerability":"C","products":[{"hashes":{"sha-256":"1"}}],"status":"fixed"}`), "64 hexadecimal"},
		"vex vulnerability":        {vexWith(`{"products":["p"],"status":"fixed"}`), "vulnerability"},
		"vex statement of later":   {vexWith(`{"vulnerability":"C","products":["p"],"status":"fixed","timestamp":"2099-01-01T00:00:00Z"}`), "in the future"},
		"vex time":                 {vexWith(`{"vulnerability":"C","products":["p"],"status":"fixed","timestamp":"x"}`), "not a time"},
		"in-toto type":             {`{"_type":"https://in-toto.io/Statement/v9","subject":[]}`, "is supported"},
		"in-toto no subject":       {`{"_type":"` + typeStatement + `","subject":[],"predicateType":"` + typeInTotoTest + `"}`, "about no artifact"},
		"in-toto sha1 only":        {`{"_type":"` + typeStatement + `","subject":[{"digest":{"sha1":"00"}}],"predicateType":"` + typeInTotoTest + `"}`, "about no artifact"},
		"in-toto digest":           {`{"_type":"` + typeStatement + `","subject":[{"digest":{"sha256":"00"}}],"predicateType":"` + typeInTotoTest + `"}`, "64 hexadecimal"},
		"in-toto predicate type":   {inTotoWith("https://example.com/x", `{}`), "predicateType"},
		"in-toto own type":         {inTotoWith(TypeFindings, `{"findings":[]}`), "predicateType"},
		"test-result empty":        {inTotoWith(typeInTotoTest, `{}`), "result"},
		"test-result lies":         {inTotoWith(typeInTotoTest, `{"result":"PASSED","failedTests":["a"]}`), "1 tests failed"},
		"test-result word":         {inTotoWith(typeInTotoTest, `{"result":"passed"}`), "result"},
		"vulns without result":     {inTotoWith(typeInTotoVuln, `{"scanner":{"uri":"u"}}`), "did not scan"},
		"vulns without scanner":    {inTotoWith(typeInTotoVuln, `{"scanner":{"result":[]}}`), "scanner.uri is missing"},
		"vulns id":                 {inTotoWith(typeInTotoVuln, `{"scanner":{"uri":"u","result":[{}]}}`), "id is missing"},
		"vulns score":              {inTotoWith(typeInTotoVuln, `{"scanner":{"uri":"u","result":[{"id":"C","severity":[{"method":"nvd","score":"bad"}]}]}}`), "not a number"},
		"slsa builder":             {inTotoWith(TypeSLSA, `{"buildDefinition":{"buildType":"b"}}`), "builder.id is missing"},
		"slsa build type":          {inTotoWith(TypeSLSA, `{"runDetails":{"builder":{"id":"b"}}}`), "buildType is missing"},
		"predicate null":           {inTotoWith(TypeSLSA, `null`), "is missing"},
		"predicate list":           {inTotoWith(TypeSLSA, `[]`), "not the expected JSON"},
		"envelope of another type": {`{"payload":"e30=","payloadType":"application/json","signatures":[{"keyid":"k","sig":"AA=="}]}`, "payload type"},
		"envelope of nothing":      {`{"payload":"e30=","payloadType":"` + mediaInToto + `","signatures":[{"keyid":"k","sig":"AA=="}]}`, "_type"},
		"no format":                {`{"hello":1}`, "format is not known"},
		"null":                     {`null`, "format is not known"},
		"go test cut":              {`{"Action":"start","Package":"p"}` + "\n" + `{"Action":"run","Package":"p","Test":"T"}`, "did not end"},
		"go test no test":          {`{"Action":"pass","Package":"p"}`, "no test ran"},
		"go test other line":       {`{"Action":"start","Package":"p"}` + "\n" + `{"x":1}`, "line 2"},
		"go test key twice":        {`{"Action":"start","Package":"p"}` + "\n" + `{"Action":"fail","Action":"pass","Package":"p"}`, "given twice"},
	}
	for name, bad := range xmlBad() {
		tests["junit "+name] = bad
	}
	for name, bad := range sarifBad() {
		tests["sarif "+name] = bad
	}
	for name, test := range tests {
		if _, err := Normalise([]byte(test.text), Options{IssuedAt: made}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
	t.Logf("%d bad reports refused", len(tests))
}

// sarifBad are reports that could be read as having fewer findings than they have.
func sarifBad() map[string]struct{ text, want string } {
	return map[string]struct{ text, want string }{
		"rules elsewhere":   {sarifWith(`"results":[],"externalPropertyFileReferences":{"driver":{"location":{"uri":"x"}}}`), "in another file"},
		"extensions away":   {sarifWith(`"results":[],"externalPropertyFileReferences":{"extensions":[{"location":{"uri":"x"}}]}`), "in another file"},
		"invocations away":  {sarifWith(`"results":[],"externalPropertyFileReferences":{"invocations":[{"location":{"uri":"x"}}]}`), "in another file"},
		"inline results":    {`{"version":"2.1.0","inlineExternalProperties":[{"results":[{"level":"error"}]}],"runs":[{"tool":{"driver":{"name":"s"}},"results":[]}]}`, "inlineExternalProperties"},
		"not started":       {sarifWith(`"results":[],"invocations":[{"processStartFailureMessage":"no such file"}]`), "did not start"},
		"error noted":       {sarifWith(`"results":[],"invocations":[{"toolExecutionNotifications":[{"level":"error"}]}]`), "may have missed findings"},
		"passes with error": {result(`"kind":"pass","level":"error"`), "contradict"},
		"extension GUID":    {result(`"rule":{"id":"a","toolComponent":{"guid":"g"}}`), "neither the tool nor one of its 0 extensions"},
		"extension name":    {result(`"rule":{"id":"a","toolComponent":{"name":"n"}}`), "neither the tool nor one of its 0 extensions"},
	}
}

func xmlBad() map[string]struct{ text, want string } {
	suite := func(inside string) string { return `<testsuite name="s">` + inside + `</testsuite>` }
	test := `<testcase name="a"/>`
	laughs := `<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa">`
	for i := range 10 {
		laughs += fmt.Sprintf(`<!ENTITY %c "&%c;&%[2]c;&%[2]c;&%[2]c;">`, 'b'+i, 'a'+i)
	}
	return map[string]struct{ text, want string }{
		"billion laughs":     {laughs + `]>` + suite(`<testcase name="&k;"/>`), "document type definition"},
		"external entity":    {`<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>` + suite(test+`&e;`), "document type definition"},
		"external DTD":       {`<!DOCTYPE x SYSTEM "http://localhost/x.dtd">` + suite(test), "document type definition"},
		"unknown entity":     {suite(test + `&evil;`), "not XML"},
		"latin 1":            {`<?xml version="1.0" encoding="ISO-8859-1"?>` + suite(test), "not XML in UTF-8"},
		"UTF-7":              {`<?xml version="1.0" encoding="UTF-7"?>` + suite(test), "not XML in UTF-8"},
		"stylesheet":         {`<?xml-stylesheet href="x"?>` + suite(test), "processing instruction"},
		"attribute twice":    {`<testsuite failures="0" failures="9">` + test + `</testsuite>`, "twice"},
		"two roots":          {suite(test) + suite(test), "is not one testsuites"},
		"other root":         {`<html>` + test + `</html>`, "is not one testsuites"},
		"no root":            {`<!-- nothing -->`, "no element"},
		"deep":               {strings.Repeat("<testsuite>", 100) + test + strings.Repeat("</testsuite>", 100), "deeper"},
		"failures are cut":   {`<testsuite failures="2">` + test + `</testsuite>`, "states 2 failures and errors, but lists 0: the report is cut, or its runner counts more than tests"},
		"errors are cut":     {`<testsuites errors="1">` + suite(test) + `</testsuites>`, "states 1"},
		"negative":           {`<testsuite failures="-1">` + test + `</testsuite>`, "not a number"},
		"overflow":           {`<testsuite failures="99999999999999999999">` + test + `</testsuite>`, "not a number"},
		"no test":            {suite(``), "no test ran"},
		"only skipped":       {suite(`<testcase name="a"><skipped/></testcase>`), "no test ran"},
		"case without suite": {`<testsuites>` + test + `</testsuites>`, "in no testsuite"},
		"unclosed":           {`<testsuite>` + test, "not XML"},
		"crossed":            {`<testsuite><testcase></testsuite></testcase>`, "not XML"},
		"control character":  {suite("<testcase name=\"a\x1b\"/>"), "not XML"},
		"not UTF-8":          {suite("<testcase name=\"\xff\"/>"), "not XML"},
		"time":               {`<testsuite timestamp="x">` + test + `</testsuite>`, "not a time"},
	}
}
