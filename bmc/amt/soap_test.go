package amt

import (
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
)

// FuzzParseAnswer: whatever comes is an answer with one body element, a fault of a known kind, or an
// error; and what is read out of it is within the limits.
func FuzzParseAnswer(f *testing.F) {
	for _, body := range []string{
		`<n:EnumerateResponse xmlns:n="http://schemas.xmlsoap.org/ws/2004/09/enumeration"><n:EnumerationContext>1</n:EnumerationContext></n:EnumerateResponse>`,
		`<r:CIM_X xmlns:r="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_X"><r:PowerState>8</r:PowerState><r:SettingData><a:ReferenceParameters xmlns:a="a"><ResourceURI>` + cimSchema +
			classBootConfig + `</ResourceURI><SelectorSet><Selector Name="InstanceID">x</Selector></SelectorSet></a:ReferenceParameters></r:SettingData></r:CIM_X>`,
		`<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>w:AccessDenied</s:Value></s:Subcode></s:Code><s:Reason><s:Text>no</s:Text></s:Reason></s:Fault>`,
		`<a>` + strings.Repeat("x<!---->", 100) + `</a>`,
		`<a><![CDATA[<b>]]>&#x41;</a>`,
	} {
		f.Add([]byte(`<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="` + nsSOAP + `"><s:Header><RelatesTo>uuid:1</RelatesTo></s:Header><s:Body>` + body + `</s:Body></s:Envelope>`))
	}
	f.Add([]byte("<!DOCTYPE a><a/>"))
	f.Add([]byte(strings.Repeat("<a>", 40)))
	f.Add([]byte("<a/><b/>"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := parseAnswer(raw)
		if err != nil {
			if k := fault.KindOf(err); k.String() == "" {
				t.Errorf("kind %d", k)
			}
			return
		}
		depth(t, a.body, 1)
		for _, c := range a.body.children {
			c.refers(classBootConfig)
			a.body.number(c.name)
		}
	})
}

func depth(t *testing.T, n *node, d int) {
	if d > maxDepth || len(n.text) > maxText {
		t.Fatalf("depth %d, %d bytes of text", d, len(n.text))
	}
	for _, c := range n.children {
		depth(t, c, d+1)
	}
}

func TestPlatformUUID(t *testing.T) {
	for in, want := range map[string]string{
		"4445534C510010488052B4C04F4D3732":     "4c534544-0051-4810-8052-b4c04f4d3732",
		"00000000000000000000000000000000":     "",
		"ffffffffffffffffffffffffffffffff":     "",
		"4445534C-5100-1048-8052-B4C04F4D3732": "error",
		"":                                     "error",
		"zz":                                   "error",
	} {
		got, err := platformUUID(in)
		if (want == "error") != (err != nil) || err == nil && got != want {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
}

// What goes into a request cannot end an element there.
func TestMessagesAreEscaped(t *testing.T) {
	m := get("CIM_X", selector{`a"b`, `</w:Selector><x>&`})
	if _, err := decode(m.envelope(`https://h"/<`, `id<>`)); err != nil {
		t.Error(err)
	}
	n, err := decode(pull("CIM_X", "<y>").envelope("u", "i"))
	if err != nil || n.child("Body").child("Pull").value("EnumerationContext") != "<y>" {
		t.Errorf("%+v, %v", n, err)
	}
}
