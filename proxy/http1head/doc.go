// Package http1head reads the heads of HTTP/1.1 requests beside net/http, which drops
// Host where a request names its target by an absolute URI.
package http1head
