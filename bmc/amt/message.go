package amt

import (
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"strings"
)

// Namespaces and actions of DSP0226 1.2 (annex A) and of the WS-Transfer and WS-Enumeration it profiles.
const (
	nsSOAP       = "http://www.w3.org/2003/05/soap-envelope"
	nsAddressing = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
	nsManagement = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	nsEnum       = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	nsTransfer   = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	nsBinding    = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"

	associationFilter = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"

	anonymous = nsAddressing + "/role/anonymous"

	cimSchema = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	amtSchema = "http://intel.com/wbem/wscim/1/amt-schema/1/"

	anyClass = "*" // the resource of queries over classes (DSP0227 section 6.2)
)

// uri is the resource URI of a class, which is also the namespace of its elements (DSP0230).
func uri(class string) string {
	switch {
	case class == anyClass:
		return "http://schemas.dmtf.org/wbem/wscim/1/*"
	case strings.HasPrefix(class, "AMT_"):
		return amtSchema + class
	}
	return cimSchema + class
}

// selector is one key of an instance.
type selector struct{ name, value string }

// message is a request. Its body is written with the prefixes a, w, n (enumeration), b
// (CIM binding) and r (the class).
type message struct {
	action, class, body string
	selectors           []selector
}

func get(class string, keys ...selector) message {
	return message{action: nsTransfer + "/Get", class: class, selectors: keys}
}

func put(class, body string) message {
	return message{action: nsTransfer + "/Put", class: class, body: body}
}

func enumerate(class string) message {
	return message{action: nsEnum + "/Enumerate", class: class, body: "<n:Enumerate/>"}
}

// associations asks for the instances of an association class that hold, in role, a reference to an
// object (DSP0227 section 8.2).
func associations(result, role, class string, keys ...selector) message {
	return message{action: nsEnum + "/Enumerate", class: anyClass, body: `<n:Enumerate><w:Filter Dialect="` + associationFilter + `"><b:AssociationInstances><b:Object>` +
		endpoint(class, keys) + "</b:Object><b:Role>" + role + "</b:Role><b:ResultClassName>" + result + "</b:ResultClassName></b:AssociationInstances></w:Filter></n:Enumerate>"}
}

// pull asks for the next instances; MaxElements is as many as AMT gives at once.
func pull(class, context string) message {
	return message{action: nsEnum + "/Pull", class: class,
		body: "<n:Pull><n:EnumerationContext>" + escape(context) + "</n:EnumerationContext><n:MaxElements>100</n:MaxElements></n:Pull>"}
}

// invoke calls an extrinsic method (DSP0227 section 10). All classes that have one here have one instance,
// which AMT takes without its keys.
func invoke(class, method, arguments string) message {
	return message{action: uri(class) + "/" + method, class: class,
		body: "<r:" + method + "_INPUT>" + arguments + "</r:" + method + "_INPUT>"}
}

// reference writes an argument that is a reference to an instance.
func reference(argument, class string, keys ...selector) string {
	return "<r:" + argument + ">" + endpoint(class, keys) + "</r:" + argument + ">"
}

// endpoint is the inside of an endpoint reference to an instance.
func endpoint(class string, keys []selector) string {
	return "<a:Address>" + anonymous + "</a:Address><a:ReferenceParameters><w:ResourceURI>" + uri(class) + "</w:ResourceURI>" + selectorSet(keys) + "</a:ReferenceParameters>"
}

func selectorSet(keys []selector) string {
	if len(keys) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("<w:SelectorSet>")
	for _, k := range keys {
		fmt.Fprintf(&b, `<w:Selector Name="%s">%s</w:Selector>`, escape(k.name), escape(k.value))
	}
	b.WriteString("</w:SelectorSet>")
	return b.String()
}

// envelope writes the message for one endpoint under id.
func (m message) envelope(to, id string) []byte {
	must := func(name, value string) string {
		return "<" + name + ` s:mustUnderstand="true">` + escape(value) + "</" + name + ">"
	}
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>` +
		`<s:Envelope xmlns:s="` + nsSOAP + `" xmlns:a="` + nsAddressing + `" xmlns:w="` + nsManagement + `" xmlns:n="` + nsEnum + `" xmlns:b="` + nsBinding + `" xmlns:r="` + uri(m.class) + `"><s:Header>` +
		must("a:Action", m.action) + must("a:To", to) + must("w:ResourceURI", uri(m.class)) +
		"<a:MessageID>" + escape(id) + "</a:MessageID><a:ReplyTo><a:Address>" + anonymous + "</a:Address></a:ReplyTo>" +
		selectorSet(m.selectors) + "</s:Header><s:Body>" + m.body + "</s:Body></s:Envelope>")
}

// messageID is a random UUID as a URI, by which an answer names its request.
func messageID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, as crypto/rand documents
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("uuid:%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
