package manifest

import (
	"bytes"
	"regexp"
	"slices"
	"unicode/utf8"
)

// secretShape is a shape of texts that are secret.
type secretShape struct {
	name    string
	pattern string
	hints   []string // one of them is in every text of the shape, so that most files need no pattern
}

// secretShapes returns the shapes that [secrets] finds: tokens with a fixed prefix, which
// their issuers document for scanners, private keys, and passwords in URLs. A text without a shape, such as a
// password by itself, is not found: the fields of a manifest have no place for one.
func secretShapes() []secretShape {
	return []secretShape{
		{"a private key", `-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----`, []string{"PRIVATE KEY"}},
		{"an AWS access key id", `\b(?:AKIA|ASIA)[A-Z2-7]{16}\b`, []string{"AKIA", "ASIA"}},
		{"a GitHub token", `\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})`, []string{"ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"}},
		{"a GitLab token", `\bgl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_-]{20,}`, []string{"glpat-", "gloas-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-"}},
		{"a Slack token", `\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[0-9]-[A-Za-z0-9-]{10,}`, []string{"xox", "xapp-"}},
		{"a Slack webhook", `hooks\.slack\.com/services/T[A-Za-z0-9_]+/B[A-Za-z0-9_]+/[A-Za-z0-9_]{20,}`, []string{"hooks.slack.com"}},
		{"a Stripe key", `\b(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{20,}`, []string{"sk_", "rk_", "whsec_"}},
		{"a Vault token", `\bhv[sbr]\.[A-Za-z0-9_-]{20,}`, []string{"hvs.", "hvb.", "hvr."}},
		{"a Google API key", `\bAIza[A-Za-z0-9_-]{35}`, []string{"AIza"}},
		{"a Google OAuth token", `\bya29\.[A-Za-z0-9_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}`, []string{"ya29.", "GOCSPX-"}},
		{"a JSON Web Token", `\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}`, []string{"eyJ"}},
		{"an API key of Anthropic or OpenAI", `\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}`, []string{"sk-"}},
		{"an npm token", `\bnpm_[A-Za-z0-9]{36}`, []string{"npm_"}},
		{"a PyPI token", `\bpypi-AgEI[A-Za-z0-9_-]{30,}`, []string{"pypi-"}},
		{"a SendGrid key", `\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}`, []string{"SG."}},
		{"a Grafana token", `\bgl(?:sa|c)_[A-Za-z0-9_=+/-]{30,}`, []string{"glsa_", "glc_"}},
		{"a Docker token", `\bdckr_pat_[A-Za-z0-9_-]{20,}`, []string{"dckr_pat_"}},
		{"a DigitalOcean token", `\bdo[opr]_v1_[a-f0-9]{64}`, []string{"_v1_"}},
		{"an Atlassian token", `\bATATT3[A-Za-z0-9_=-]{50,}`, []string{"ATATT3"}},
		{"an age key", `\bAGE-SECRET-KEY-1[A-Z0-9]{50,}`, []string{"AGE-SECRET-KEY-"}},
		{"a password in a URL", `\b[a-z][a-z0-9+.-]*://[^\s/:@'"{}]*:[^\s/@'"{}]+@`, []string{"://"}},
		{"a bearer token", `\b(?:[Bb]earer|BEARER)\s+[A-Za-z0-9._~+/-]{24,}=*`, []string{"earer", "EARER"}},
	}
}

// place is a place in a file, 1-based.
type place struct{ line, column int }

// secretFound is a text that looks like a secret. The text itself is not kept.
type secretFound struct {
	place
	name string
}

// maxSecrets bounds what is reported of one file.
const maxSecrets = 20

// secrets returns where a file holds texts that look like secrets, also in its comments.
func secrets(data []byte) (out []secretFound) {
	for _, shape := range secretShapes() {
		if !slices.ContainsFunc(shape.hints, func(hint string) bool { return bytes.Contains(data, []byte(hint)) }) {
			continue
		}
		for _, at := range regexp.MustCompile(shape.pattern).FindAllIndex(data, maxSecrets) {
			before := data[:at[0]]
			start := bytes.LastIndexByte(before, '\n') + 1
			out = append(out, secretFound{place{bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(before[start:]) + 1}, shape.name})
		}
	}
	return out
}
