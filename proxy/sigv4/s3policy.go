package sigv4

import (
	"net/http"
	"strings"
)

// exceedsRule returns what of a request to S3 lets it do more than its method and
// path show, "" for nothing. A rule bounds those; a signature made for whatever
// else the plugin asks would lend it all that the key may do: to copy an object
// that it may not read to where it may, or to open one to everybody.
func exceedsRule(r *Request, scope Scope) string {
	if !strings.HasPrefix(scope.Service, "s3") {
		return ""
	}
	for name := range r.Header {
		if what := refersElsewhere(name); what != "" {
			return "the header " + what
		}
	}
	for pair := range strings.SplitSeq(r.Query, "&") {
		name := parameter(pair)
		what := refersElsewhere(name) // S3 takes those of a presigned URL for headers
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if what == "" && (name == "session" || !reads && changesACL(name)) {
			what = name // CreateSession answers with credentials
		}
		if what != "" {
			return "the query parameter " + what
		}
	}
	return ""
}

// refersElsewhere returns which header that names other objects, or other readers, a
// header is, "" for none.
func refersElsewhere(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	for _, prefix := range []string{"x-amz-copy-source", "x-amz-rename-source", "x-amz-grant-"} {
		if strings.HasPrefix(name, prefix) {
			return strings.TrimSuffix(prefix, "-")
		}
	}
	if name == "x-amz-acl" {
		return name
	}
	return ""
}

// changesACL reports whether writing a subresource, by its name in lower case, changes who may read the object or
// the bucket, or where what is in it goes.
func changesACL(name string) bool {
	switch name {
	case "acl", "policy", "publicaccessblock", "ownershipcontrols", "website", "cors",
		"replication", "notification", "logging", "inventory", "analytics":
		return true
	}
	return false
}
