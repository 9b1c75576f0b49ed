// Package httpclean decides what of a plugin's request must not reach an upstream.
//
// The proxy and the ext_authz server remove the same things: headers of one
// connection ([ClassHop]), headers that make a server see another request or
// another caller than the one that was decided ([ClassOverride]), Chaperone's own
// ([ClassOwn]), and what the plugin put into the slot of a credential, which is a
// header ([SameHeader]), a query parameter ([WithoutParameter]) or a cookie
// ([WithoutCookie]). A difference between the two would be a way around one of them.
//
// Header names are compared as servers do that make variables of them (CGI, WSGI,
// PHP): without case, and with an underscore for a hyphen. X_Api_Key is X-Api-Key.
//
// The package imports the standard library only.
package httpclean
