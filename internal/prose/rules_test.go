package prose

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// rule is a rule of CONTRIBUTING.md, Language.
type rule int

const (
	relative   rule = iota // R1: a sentence begins with a relative clause or a negative pronoun
	bannedWord             // R2: a phrase of banned.txt
	speech                 // R3: a thing speaks
	logGrammar             // R4: a log message is not "noun state"
	rules                  // how many there are
)

func (r rule) String() string { return [...]string{"R1", "R2", "R3", "R4"}[r] }

// speaking is a verb of speech or knowledge with the word before it.
var speaking = regexp.MustCompile(`(?i)\b([\w-]+),? (says|said|knows|knew)\b`)

// speaker is the last word of a person's name, a protocol peer's or a document's.
var speaker = regexp.MustCompile(`(?i)^(author|caller|client|database|envoy|host|issuer|kernel|operator|peer|plugin|process|reader|receiver|reviewer|sender|server|specification|systemd|upstream|user|vault|you|[A-Z]*\d+)$`)

// fault is one breach of a rule.
type fault struct {
	rule   rule
	quote  string
	advice string
}

// firstWord is a sentence's beginning that R1 excludes.
var firstWord = regexp.MustCompile(`(?i)^(what|whatever|which|whichever|who|whoever|whom|whose|nothing|nobody|somebody|none)\b`)

// banned is a phrase that R2 excludes, and the word to use.
type banned struct {
	phrase *regexp.Regexp
	use    string
}

// loadBanned reads banned.txt.
func loadBanned(t *testing.T) []banned {
	t.Helper()
	data, err := os.ReadFile("testdata/banned.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []banned
	for line := range strings.SplitSeq(string(data), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		phrase, use, found := strings.Cut(line, "->")
		if !found {
			t.Fatalf("banned.txt: %q has no ->", line)
		}
		pattern, err := regexp.Compile(`(?i)\b(?:` + strings.TrimSpace(phrase) + `)\b`)
		if err != nil {
			t.Fatalf("banned.txt: %v", err)
		}
		all = append(all, banned{phrase: pattern, use: strings.TrimSpace(use)})
	}
	return all
}

var (
	inlineCode = regexp.MustCompile("``[^`]*``|`[^`]*`")
	spaces     = regexp.MustCompile(`\s+`)
	opening    = `"'(\[*_“‘`
	sentence   = regexp.MustCompile(`([.!?]["')\]*_”’]*)\s+([` + opening + `]*[A-Z0-9X])`)
	shortForms = regexp.MustCompile(`\b(e\.g|i\.e|etc|cf|vs|No|St)\.$`)
)

// sentences splits words, in which code has been replaced by X.
func sentences(words string) []string {
	words = inlineCode.ReplaceAllString(words, "X")
	words = strings.TrimSpace(spaces.ReplaceAllString(words, " "))
	var all []string
	for words != "" {
		end := len(words)
		for from := 0; ; {
			at := sentence.FindStringSubmatchIndex(words[from:])
			if at == nil {
				break
			}
			if !shortForms.MatchString(words[:from+at[3]]) {
				end = from + at[3]
				break
			}
			from += at[3]
		}
		all = append(all, strings.TrimLeft(words[:end], opening+" "))
		words = strings.TrimSpace(words[end:])
	}
	return all
}

// check returns the faults of one text, and the number of its sentences.
func check(t text, list []banned) (faults []fault, count int) {
	all := sentences(t.words)
	for _, s := range all {
		// A question may begin so, as a heading does, and a cell of a table may be one word.
		if first := firstWord.FindString(s); first != "" && len(strings.Fields(s)) > 2 && !strings.HasSuffix(strings.TrimRight(s, `"')*_`), "?") {
			faults = append(faults, fault{relative, s, "begin with the thing itself, or with If, When or For"})
		}
	}
	plain := strings.Join(all, " ")
	for _, b := range list {
		for _, at := range b.phrase.FindAllStringIndex(plain, -1) {
			quote := plain[max(0, at[0]-30):min(len(plain), at[1]+20)]
			faults = append(faults, fault{bannedWord, quote, fmt.Sprintf("%q: use %s", plain[at[0]:at[1]], b.use)})
		}
	}
	for _, at := range speaking.FindAllStringSubmatchIndex(plain, -1) {
		if subject := plain[at[2]:at[3]]; !speaker.MatchString(subject) {
			quote := plain[max(0, at[0]-20):min(len(plain), at[1]+20)]
			faults = append(faults, fault{speech, quote, fmt.Sprintf("%q: use reports, returns, records, specifies, or has", plain[at[4]:at[5]])})
		}
	}
	if t.kind == logLine {
		if advice := logFault(t.words); advice != "" {
			faults = append(faults, fault{logGrammar, t.words, advice})
		}
	}
	return faults, len(all)
}

// imperatives are verbs that an author puts first in a log message instead of the noun.
var imperatives = regexp.MustCompile(`^(add|allow|answer|apply|ask|attach|begin|bind|build|call|carry|check|clear|close|compare|connect|copy|count|create|cut|decide|delete|deny|detach|dial|drop|end|examine|fetch|find|flush|follow|get|give|hold|install|join|keep|kill|lay|learn|leave|load|log|make|mark|measure|meter|notify|open|parse|pass|place|put|raise|read|record|release|reload|remove|renew|replace|report|reset|restore|resume|retry|return|revoke|run|save|send|serve|set|show|sign|start|stop|sync|take|tell|try|tune|unlink|unmount|unregister|update|wait|watch|write) `)

// logFault returns why a log message is not "noun state", as "vault token renewal failed".
func logFault(words string) string {
	lower := " " + strings.ToLower(words) + " "
	switch n := len(strings.Fields(words)); {
	case words == "ready": // of the process itself
		return ""
	case n < 2:
		return "name the thing and its state"
	case n > 10:
		return "say it in at most ten words, and put the rest in fields"
	case strings.ContainsAny(words, ".,;:!?"+`"`):
		return "one phrase without punctuation; put values in fields"
	case imperatives.MatchString(words) && !strings.HasSuffix(words, " failed") && !strings.Contains(words, " not "):
		return "begin with the noun: not \"renew the token\" but \"token renewal failed\""
	case regexp.MustCompile(`^ (a|an|the|this|that|it|there|no) `).MatchString(lower) && !strings.HasPrefix(lower, " no "):
		return "begin with the noun, without an article"
	case regexp.MustCompile(` (has|have|had|does|do|did|is|are|was|were|will|would|can|cannot|could|may|must|who|which|that|whose|what) `).MatchString(lower):
		return "noun and state only, without an auxiliary verb or a clause"
	}
	return ""
}

func TestRules(t *testing.T) {
	list := loadBanned(t)
	data, err := os.ReadFile("testdata/rules.txt")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]kind{"comment": comment, "document": document, "log": logLine}
	for line := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		want, words, _ := strings.Cut(rest, " ")
		faults, _ := check(text{kind: kinds[name], words: strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(words)}, list)
		got := "-"
		for i, f := range faults {
			if got += "," + f.rule.String(); i == 0 {
				got = f.rule.String()
			}
		}
		if got != want {
			t.Errorf("%q: got %s, want %s: %v", words, got, want, faults)
		}
	}
}

func TestTexts(t *testing.T) {
	const program = `package p

// Decide is pure. It keeps
// nothing.
func f(t T) error {
	log.Warn("login failed", zap.Error(err))
	t.Fatalf("got %v", 1) // its maker
	return fmt.Errorf("the plugin "+name+" sent too much")
}
`
	found, err := goTexts([]byte(program), false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, fmt.Sprintf("%d:%d:%s", f.line, f.kind, strings.TrimSpace(f.words)))
	}
	want := []string{
		"3:0:Decide is pure. It keeps nothing.", "7:0:its maker",
		"6:4:login failed", "7:3:got %v", "8:2:the plugin V sent too much",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	page, err := markdownTexts([]byte("# A heading\nA paragraph\ngoes on.\n\n- item one\n  goes on\n- item two\n\n```\nCode\n```\n| a | b |\n|--|--|\n"))
	if err != nil || len(page) != 6 {
		t.Errorf("got %d texts of the page and %v, want 6: %+v", len(page), err, page)
	}
	hashes, err := hashTexts([]byte("# one\n# two\nkey: a#b # three\n"))
	if err != nil || len(hashes) != 2 {
		t.Errorf("got %d comments and %v, want 2: %+v", len(hashes), err, hashes)
	}
	c, err := cTexts([]byte("// one\n// two\nint a; /* three\n * four */\n"))
	if err != nil || len(c) != 2 {
		t.Errorf("got %d comments and %v, want 2: %+v", len(c), err, c)
	}
}
