package extauthz

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// The generated types are the reference for what is scanned and written by hand.

// Check answers as a server does that decodes and encodes with the generated
// types: the whole way of a check through the codec, for tests.
func (s *Server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	decode := func(v any) error {
		wire, err := proto.Marshal(in)
		if err == nil {
			return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, v)
		}
		// Text that is not UTF-8 cannot be encoded, but must be refused.
		v.(*checkMessage).check = *reference(in) //nolint:forcetypeassert // the handler decodes nothing else
		return nil
	}
	out, err := handleCheck(s, ctx, decode, nil)
	if err != nil {
		return nil, err
	}
	wire, err := newCodec().Marshal(out)
	if err != nil {
		return nil, err
	}
	answer := new(authv3.CheckResponse)
	return answer, proto.Unmarshal(wire.Materialize(), answer)
}

// reference is what the door reads of a decoded check.
func reference(in *authv3.CheckRequest) *check {
	attributes := in.GetAttributes()
	http := attributes.GetRequest().GetHttp()
	address := attributes.GetDestination().GetAddress().GetSocketAddress()
	c := &check{
		attributes: attributes != nil, http: http != nil,
		principal: attributes.GetSource().GetPrincipal(), service: attributes.GetDestination().GetService(),
		dialled: socket{address.GetAddress(), address.GetPortValue(), address.GetProtocol() != corev3.SocketAddress_TCP},
		sni:     attributes.GetTlsSession().GetSni(),
		id:      http.GetId(), method: http.GetMethod(), scheme: http.GetScheme(), authority: http.GetHost(),
		path: http.GetPath(), query: http.GetQuery(), size: http.GetSize(),
	}
	c.plugin, c.hasPlugin = attributes.GetContextExtensions()[contextPlugin]
	for name, value := range http.GetHeaders() {
		c.folded = append(c.folded, header{name, value})
	}
	for _, h := range http.GetHeaderMap().GetHeaders() {
		value := h.GetValue()
		if len(h.GetRawValue()) > 0 {
			value = string(h.GetRawValue())
		}
		c.raw = append(c.raw, header{h.GetKey(), value})
	}
	return c
}

// generated encodes an answer with the generated types.
func (a *answer) generated() *authv3.CheckResponse {
	fields := map[string]*structpb.Value{}
	for name, value := range map[string]string{
		"decision": a.metadata.decision, "plugin": a.metadata.plugin, "reason": a.metadata.reason,
		"grant": a.metadata.grant, "rule": a.metadata.rule, "scheme": a.metadata.scheme,
	} {
		if value != "" {
			fields[name] = structpb.NewStringValue(value)
		}
	}
	if a.metadata.generation != 0 {
		fields["generation"] = structpb.NewNumberValue(float64(a.metadata.generation))
	}
	var headers []*corev3.HeaderValueOption
	for _, h := range a.headers {
		headers = append(headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h.name, Value: h.value},
			Append:       wrapperspb.Bool(false), //nolint:staticcheck // deprecated, and what older Envoys read
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	out := &authv3.CheckResponse{Status: new(statuspb.Status), DynamicMetadata: &structpb.Struct{Fields: fields}}
	if a.verdict == allowed {
		out.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: headers, HeadersToRemove: a.remove}}
		return out
	}
	out.Status.Code, out.Status.Message = int32(a.code), a.message
	if a.code == codes.OK {
		out.Status.Code = int32(codes.PermissionDenied)
	}
	refusal := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode(a.status)}, Headers: headers, Body: a.body}
	out.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: refusal}
	if a.verdict == failed {
		out.HttpResponse = &authv3.CheckResponse_ErrorResponse{ErrorResponse: refusal}
	}
	return out
}

// schema is what the door reads of a CheckRequest: message by message, each
// field's number and type. Those with | are alternatives, those with * repeated.
// Where the door does not look into a message it is bytes here.
const schema = `
	Check       1 Attributes
	Attributes  1 Source  2 Destination  4 Request  10 *Entry  12 Session
	Source      4 string
	Destination 1 Address  2 string
	Address     1 |Socket  2 |bytes  3 |bytes
	Socket      1 int32  2 string  3 |uint32  4 |string
	Session     1 string
	Request     2 HTTP
	HTTP        1 string  2 string  3 *Entry  4 string  5 string  6 string  7 string  9 int64  13 HeaderMap
	HeaderMap   1 *Header
	Header      1 string  2 string  3 bytes
	Entry       1 string  2 string
`

// narrow describes a CheckRequest of which only what the door reads is known.
func narrow(t testing.TB) protoreflect.MessageDescriptor {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{Name: new("narrow.proto"), Syntax: new("proto3")}
	for line := range strings.SplitSeq(strings.TrimSpace(schema), "\n") {
		words := strings.Fields(line)
		m := &descriptorpb.DescriptorProto{Name: &words[0]}
		for i := 1; i < len(words); i += 2 {
			m.Field = append(m.Field, narrowField(words[i], words[i+1]))
		}
		if strings.Contains(line, "|") {
			m.OneofDecl = []*descriptorpb.OneofDescriptorProto{{Name: new("one")}}
		}
		file.MessageType = append(file.MessageType, m)
	}
	return testenv.MustGet(protodesc.NewFile(file, new(protoregistry.Files)))(t).Messages().ByName("Check")
}

func narrowField(number, kind string) *descriptorpb.FieldDescriptorProto {
	n, _ := strconv.ParseInt(number, 10, 32)
	f := &descriptorpb.FieldDescriptorProto{Name: new("f" + number), Number: new(int32(n)), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
	if rest, ok := strings.CutPrefix(kind, "*"); ok {
		kind, f.Label = rest, descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	}
	if rest, ok := strings.CutPrefix(kind, "|"); ok {
		kind, f.OneofIndex = rest, new(int32(0))
	}
	if scalar, ok := descriptorpb.FieldDescriptorProto_Type_value["TYPE_"+strings.ToUpper(kind)]; ok {
		f.Type = descriptorpb.FieldDescriptorProto_Type(scalar).Enum()
	} else {
		f.Type, f.TypeName = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), new("."+kind)
	}
	return f
}

// decode decodes what the door reads of a check, with protobuf's own decoder and
// then the generated types, and reports whether it is one.
func decode(t testing.TB, wire []byte, schema protoreflect.MessageDescriptor) (*check, bool) {
	t.Helper()
	m := dynamicpb.NewMessage(schema)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(wire, m); err != nil {
		return nil, false
	}
	empty(m)
	in := new(authv3.CheckRequest)
	testenv.Must(t, proto.Unmarshal(testenv.MustGet(proto.Marshal(m))(t), in))
	return reference(in), true
}

// empty removes what is inside the messages that are not looked into.
func empty(m protoreflect.Message) {
	for _, path := range [][]protoreflect.FieldNumber{{1, 2, 1}} {
		for _, number := range path {
			field := m.Descriptor().Fields().ByNumber(number)
			if !m.Has(field) {
				return
			}
			m = m.Mutable(field).Message()
		}
	}
	for _, number := range []protoreflect.FieldNumber{2, 3} {
		if field := m.Descriptor().Fields().ByNumber(number); m.Has(field) {
			m.Set(field, protoreflect.ValueOfBytes(nil))
		}
	}
}

// sorted orders headers, of which the last of a name counts where they were a map.
func sorted(list []header, isMap bool) []header {
	var out []header
	for i, h := range list {
		again := func(later header) bool { return later.name == h.name }
		if !isMap || !slices.ContainsFunc(list[i+1:], again) {
			out = append(out, h)
		}
	}
	if isMap {
		slices.SortFunc(out, func(a, b header) int { return strings.Compare(a.name, b.name) })
	}
	return out
}

// FuzzScan reads any bytes: what is scanned is what protobuf decodes, or both
// refuse.
func FuzzScan(f *testing.F) {
	for _, in := range seeds(f) {
		f.Add(testenv.MustGet(proto.Marshal(in))(f))
	}
	for _, wire := range oddities() {
		f.Add(wire)
	}
	schema := narrow(f)
	f.Fuzz(func(t *testing.T, wire []byte) {
		want, ok := decode(t, wire, schema)
		got := new(check)
		if read := got.read(mem.BufferSlice{mem.SliceBuffer(wire)}); read != ok {
			t.Fatalf("reads it: %t, want %t", read, ok)
		}
		if !ok {
			return
		}
		for _, c := range []*check{want, got} {
			c.raw, c.folded = sorted(c.raw, false), sorted(c.folded, true)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(check{}, socket{}, header{})); diff != "" {
			t.Errorf("reads (-want +got):\n%s", diff)
		}
	})
}

// oddities are messages that no encoder makes.
func oddities() [][]byte {
	field := func(number protowire.Number, inside ...[]byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), slices.Concat(inside...))
	}
	varint := func(number protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), value)
	}
	text := func(s string) []byte { return []byte(s) }
	http := func(inside ...[]byte) []byte { return field(1, field(4, field(2, inside...))) }
	address := func(inside ...[]byte) []byte { return field(1, field(2, field(1, inside...))) }
	group := protowire.AppendTag(protowire.AppendTag(nil, 77, protowire.StartGroupType), 77, protowire.EndGroupType)
	return [][]byte{
		slices.Concat(http(field(2, text("GET"))), http(field(2, text("POST")), field(5, text("a")))), // merged, the last counts
		slices.Concat(http(field(2, text("GET"))), http(field(2))),                                    // and is empty
		http(varint(2, 7), field(9, text("x")), field(2, text("GET"))),                                // wire types that are another's
		http(field(2, text("GET")), group, varint(99, 1), protowire.AppendFixed32(protowire.AppendTag(nil, 98, protowire.Fixed32Type), 1)),
		http(protowire.AppendTag(nil, 77, protowire.EndGroupType)),
		http(field(2, text("\xff"))), http(field(3, field(1, text("\xff")))), http(field(13, field(1, field(2, text("\xff"))))),
		http(field(13, field(1, field(1, text("a")), field(3, text("\xff"))))),
		http(field(11, text("\xff")), field(8, text("\xff"))), // not read
		http(field(3, field(1, text("a")), field(2, text("1"))), field(3, field(1, text("a")), field(2, text("2"))), field(3, field(2, text("3")), field(3, text("4")))),
		http(varint(9, 1<<64-1), varint(9, 1<<40)),
		address(field(1, field(2, text("10.0.0.1")), varint(3, 443)), field(1, varint(1, 1))),
		address(field(1, field(2, text("10.0.0.1")), varint(3, 443)), field(2, text("\xff")), field(1, varint(3, 80))),
		address(field(1, varint(3, 1<<40|1<<16|443), field(2, text("10.0.0.1")))),
		address(field(1, field(2, text("10.0.0.1")), varint(3, 443), field(4, text("https")))),
		address(field(1, varint(3, 443)), field(3)),
		address(field(1, varint(1, 1<<32), field(4, text("https")), varint(3, 443))),
		field(1, field(10, field(1, text("plugin"))), field(10, field(1, text("plugin")), field(2, text("mail")))),
		field(1),
		varint(1, 1),
		{0x0a},
		{0x0a, 0x05, 0x01},
		{0x00},
		{0x80},
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		{0x8a, 0x00, 0x00},           // a tag in more bytes than it needs
		[]byte("\x80\xff\xff\xff00"), // a field number beyond the highest
	}
}

// FuzzEncode writes any answer: what is written is what the generated types
// write.
func FuzzEncode(f *testing.F) {
	f.Add(uint8(0), uint32(7), "no_grant: none", 403, "{}", "content-type\ntext/plain", "x-a\nx-b", "id", uint64(1))
	f.Add(uint8(2), uint32(0), "", 0, "", ":path\n/"+strings.Repeat("a", 200), strings.Repeat("x-long-name\n", 40), "0193f6c2", uint64(1<<60))
	f.Add(uint8(1), uint32(14), strings.Repeat("x", 20000), 503, strings.Repeat("y", 300), "", "", "\xff", uint64(0))
	f.Add(uint8(0), uint32(0), "", 0, "", "", "", "", uint64(0))
	f.Fuzz(func(t *testing.T, kind uint8, code uint32, message string, status int, body, headers, remove, fact string, generation uint64) {
		valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
		a := answer{
			verdict: verdict(kind % 3), code: codes.Code(code & 0x7fffffff), message: valid(message), status: status & 0xffff, body: valid(body),
			metadata: dynamicMetadata{valid(fact), "weather", valid(body), "", valid(message), valid(fact), generation},
		}
		name, value, _ := strings.Cut(valid(headers), "\n")
		a.headers = []header{{name, value}, {value, name}}
		for name := range strings.SplitSeq(valid(remove), "\n") {
			if name != "" {
				a.remove = append(a.remove, name)
			}
		}
		got := new(authv3.CheckResponse)
		testenv.Must(t, proto.Unmarshal(a.encode(), got))
		if diff := cmp.Diff(a.generated(), got, protocmp.Transform()); diff != "" {
			t.Errorf("encodes (-want +got):\n%s", diff)
		}
		if (got.GetStatus().GetCode() == 0) != (a.verdict == allowed) || got.GetStatus() == nil || got.GetHttpResponse() == nil {
			t.Errorf("%v = %v", a.verdict, got)
		}
	})
}
