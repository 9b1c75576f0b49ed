package learn_test

import (
	"slices"
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	const api = "GET https://api.example"
	tests := map[string]struct {
		requests []string
		want     string // the rules
		comment  string // that the YAML contains
	}{
		"one path": {[]string{api + "/v1/forecast"}, "GET api.example /v1/forecast", ""},
		"ids":      {repeat(3, api+"/users/%d/posts"), "GET api.example /users/*/posts", `* for integers, as in "0", "1", "2"`},
		"one integer stands literally": {
			[]string{api + "/api/2/users"}, "GET api.example /api/2/users", `# - "/api/*/users" # too few ids to be sure, as in "2"`,
		},
		"one UUID suffices": {
			[]string{api + "/a/0193f6c2-7d3e-7000-8000-000000000000"}, "GET api.example /a/*", "* for UUIDs",
		},
		"many words are suggested": {
			repeat(8, api+"/city/c%dx"), "GET api.example /city/c0x /city/c1x /city/c2x /city/c3x /city/c4x /city/c5x /city/c6x /city/c7x",
			`# - "/city/*" # only observation: 8 or more values, as in "c0x"`,
		},
		"few words are not":       {repeat(7, api+"/city/c%dx"), "GET api.example /city/c0x /city/c1x /city/c2x /city/c3x /city/c4x /city/c5x /city/c6x", ""},
		"never the first segment": {repeat(20, api+"/%d"), "GET api.example " + strings.Join(sorted(repeat(20, "/%d")), " "), ""},
		"ids beside a word": {
			append(repeat(8, api+"/users/%d"), api+"/users/me"), "GET api.example /users/me /users/*", "",
		},
		"few ids beside a word": {
			append(repeat(2, api+"/users/%d"), api+"/users/me"), "GET api.example /users/0 /users/1 /users/me", `# - "/users/*" # too few ids`,
		},
		"depth varies": {
			[]string{api + "/s/a", api + "/s/b/c", api + "/s/d/e/f", api + "/s/g/h/i/j", api + "/s/k/l/m/n/o"},
			"GET api.example /s/a /s/b/c /s/d/e/f /s/g/h/i/j /s/k/l/m/n/o", `# - "/s/**" # only observation: 5 paths of 5 depths`,
		},
		"a slash at the end": {[]string{api + "/a/", api + "/a"}, "GET api.example /a /a/", ""},
		"never across hosts": {
			slices.Concat(repeat(1, "GET https://a.example/u/%d"), []string{"GET https://b.example/u/7"}),
			"GET a.example /u/0\nGET b.example /u/7", "",
		},
		"hosts with the same paths": {
			repeat(8, "GET https://t%d.tiles.example.com/map"),
			"GET t0.tiles.example.com,t1.tiles.example.com,t2.tiles.example.com,t3.tiles.example.com,t4.tiles.example.com,t5.tiles.example.com,t6.tiles.example.com,t7.tiles.example.com /map",
			`put "*.tiles.example.com" in place of them`,
		},
		"hosts below a public suffix": {repeat(8, "GET https://t%d.co.uk/map"), "GET t0.co.uk,t1.co.uk,t2.co.uk,t3.co.uk,t4.co.uk,t5.co.uk,t6.co.uk,t7.co.uk /map", "!in place of"},
		"methods with the same paths": {[]string{api + "/a", "POST https://api.example/a", "PUT https://api.example/b"}, "GET,POST api.example /a\nPUT api.example /b", ""},
		"ports and schemes":           {[]string{"GET http://a.example/x", "GET https://a.example:8443/x", "- tls://a.example", "- tcp://10.0.0.1:5432"}, "tcp10.0.0.1[5432]\nGET httpa.example /x\nGET a.example[8443] /x\ntlsa.example", ""},
		"an upgrade":                  {[]string{api + "/ws websocket", api + "/ws"}, "GET api.example /ws\nGET api.example upgrade websocket /ws", ""},
		"an encoded slash":            {[]string{api + "/p/%2F1", api + "/p/x"}, "GET api.example /p/x\nGET api.example /p/%2F1", "encodedSlash: allow"},
		"a literal star":              {[]string{api + "/a/*", api + "/b"}, "GET api.example /b", "1 accesses that no rule can grant"},
		"TRACE":                       {[]string{"TRACE https://api.example/a", api + "/b"}, "GET api.example /b", "1 accesses that no rule can grant"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := propose(t, accesses(t, test.requests...))
			if got := summarise(p); got != test.want {
				t.Errorf("learned\n%s\nwant\n%s", got, test.want)
			}
			out := text(t, p)
			if unwanted, ok := strings.CutPrefix(test.comment, "!"); strings.Contains(out, unwanted) == ok {
				t.Errorf("got\n%s\nwant it to contain %q: %v", out, unwanted, !ok)
			}
		})
	}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
